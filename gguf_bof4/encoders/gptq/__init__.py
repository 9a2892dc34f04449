"""The gptq encoder: a model is run layer by layer, and each layer is quantized for the inputs that it gets."""

RECIPE = 4
"""To be raised with every change of what this package makes, by itself or by its defaults: interrupted work of another
recipe is not gone on with, and what was measured of one is measured again."""
