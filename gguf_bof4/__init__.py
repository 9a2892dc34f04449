"""BOF4-S tensor types for GGUF.

Importing this package teaches the installed gguf package the types: GGMLQuantizationType.BOF4_S,
gguf.quantize, gguf.dequantize, GGUFReader and GGUFWriter then work with them. `read_tensor` gives the weights of a
tensor of any type, with the outliers of its list, which gguf.dequantize knows nothing of.
"""

from gguf_bof4.formats import BOF4_S as BOF4_S_FORMAT
from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.lists import read_tensor
from gguf_bof4.quants import BOF4_S

__all__ = ["BOF4_S", "BOF4_S_FORMAT", "FORMATS", "Format", "read_tensor"]
__version__ = "0.2.0"
