"""BOF4 tensor types for GGUF.

Importing this package registers the types with the installed gguf package: GGMLQuantizationType.BOF4_S, gguf.quantize,
gguf.dequantize, GGUFReader and GGUFWriter then work with them. `read_tensor` decodes a tensor of any type and adds the
outliers of its list, which gguf.dequantize does not. transformers applies lists, too, where it loads a GGUF file.
"""

from gguf_bof4.formats import BOF4_S as BOF4_S_FORMAT
from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.lists import read_tensor
from gguf_bof4.quants import BOF4_S
from gguf_bof4.transformers_loader import teach_transformers

teach_transformers()

__all__ = ["BOF4_S", "BOF4_S_FORMAT", "FORMATS", "Format", "read_tensor"]
__version__ = "0.2.0"
