"""The gptq encoder: a model is run layer by layer, and each layer is quantized for the inputs that it gets."""
