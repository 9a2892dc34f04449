"""BOF4 tensor types for GGUF.

Importing this package registers the types with the installed gguf package: GGMLQuantizationType.BOF4_S, gguf.quantize,
gguf.dequantize, GGUFReader and GGUFWriter then work with them. `read_tensor` decodes a tensor of any type and adds the
outliers of its list, which gguf.dequantize does not. transformers applies lists, too, where it loads a GGUF file.
`library_folder` is where programs such as llama-cpp-python find the patched llama.cpp.
"""

from pathlib import Path

from gguf_bof4.formats import BOF4_S as BOF4_S_FORMAT
from gguf_bof4.formats import FORMATS, Format
from gguf_bof4.lists import read_tensor
from gguf_bof4.quants import BOF4_S
from gguf_bof4.transformers_loader import teach_transformers

teach_transformers()

__all__ = ["BOF4_S", "BOF4_S_FORMAT", "FORMATS", "Format", "library_folder", "read_tensor"]
__version__ = "0.2.0"


def library_folder() -> Path:
    """The folder of the patched llama.cpp's libraries and programs, for LLAMA_CPP_LIB_PATH of llama-cpp-python.

    Raises:
        gguf_bof4.ggml_patch.build.NotBuiltError: there is no build.
    """
    from gguf_bof4.ggml_patch.build import installed_bin  # importing the package stays quick

    return installed_bin()
