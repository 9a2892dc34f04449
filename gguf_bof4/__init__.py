"""BOF4-S tensor types for GGUF.

Importing this package teaches the installed gguf package the types: GGMLQuantizationType.BOF4_S,
gguf.quantize, gguf.dequantize, GGUFReader and GGUFWriter then work with them.
"""

from gguf_bof4.formats import BOF4_S as BOF4_S_FORMAT
from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.quants import BOF4_S

__all__ = ["BOF4_S", "BOF4_S_FORMAT", "FORMATS", "Format"]
__version__ = "0.1.0"
