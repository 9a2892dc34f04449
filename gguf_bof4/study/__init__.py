"""The formats around BOF4, simulated in PyTorch and measured side by side.

A format is a frozen dataclass: its fields are its parameters, it counts its bits, and `quantize` gives what numbers
become when they are written in the format and read again.
"""
