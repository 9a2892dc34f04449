"""A GGUF model, one file or parts, as the source of a conversion."""

from __future__ import annotations

from pathlib import Path

import gguf

from gguf_bof4.convert.model_kinds import why_no_model
from gguf_bof4.convert.opened import OpenedModel
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output import EQUALIZED, HOW_MADE, RawValue, Writer
from gguf_bof4.errors import UserError
from gguf_bof4.gguf_files.model import Model, open_model

_REPLACED = ("split.", "bof4.")
_REPLACED_KEYS = ("general.architecture", "general.file_type", "general.quantization_version")


def open_source(path: Path, options: Options) -> OpenedModel:
    """Open a model to convert.

    Args:
        path: a GGUF file, or the first of its parts.
        options: give the name of the model.

    Raises:
        UserError: it cannot be read, or holds no model.
    """
    model = open_model(path)
    architecture = model.value("general.architecture")
    if (reason := why_no_model(path, model.value("general.type"), architecture)) is not None:
        raise UserError(reason)
    assert isinstance(architecture, str)
    if not model.tensors:
        raise UserError(f"{path} holds no tensors: a vocabulary alone cannot be converted")
    writer = _make_writer(model, architecture, options)
    return OpenedModel(path, model.files, architecture, model.tensors, writer, lists=model.lists, model=model)


def _metadata(model: Model) -> dict[str, RawValue]:
    """Metadata of the first part, byte for byte, so that arrays of arrays and strings that are not UTF-8 are kept."""
    reader = model.readers[0]
    fields = list(reader.metadata.values())
    ends = [*(field.offset for field in fields[1:]), reader.metadata_end]
    values = {}
    with model.path.open("rb") as file:
        for field, end in zip(fields, ends, strict=True):
            key_bytes = 8 + field.parts[1].nbytes
            file.seek(field.offset + key_bytes)
            values[field.name] = RawValue(file.read(end - field.offset - key_bytes))
    return values


def _make_writer(model: Model, architecture: str, options: Options) -> Writer:
    """A writer with the model's metadata, without keys that describe the source file."""
    writer = Writer(path=None, arch=architecture)
    for key, value in _metadata(model).items():
        if key in HOW_MADE or key == EQUALIZED or not (key.startswith(_REPLACED) or key in _REPLACED_KEYS):
            # the type given here is not used: it is part of the raw value
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY)
    if (alignment := model.integer("general.alignment")) is not None:
        writer.data_alignment = alignment
    if options.model_name:
        writer.kv_data[0].pop("general.name", None)
        writer.add_name(options.model_name)
    return writer
