"""Writes a GGUF file of one or several parts, which appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from gguf_bof4.convert.encoding import Job, add_errors, encode, nbytes, read_floats
from gguf_bof4.convert.imatrix import Imatrix
from gguf_bof4.convert.options import Options
from gguf_bof4.convert.output_lists import PlannedList, finish
from gguf_bof4.convert.policy import Decision
from gguf_bof4.convert.report import size_text
from gguf_bof4.convert.sources import Bytes, Source
from gguf_bof4.encoders.encoder import Encoded
from gguf_bof4.errors import DISK_FULL, UserError
from gguf_bof4.formats import FORMAT_VERSION, FORMATS
from gguf_bof4.gguf_files.model import Tensor, read_list
from gguf_bof4.outlier_choice import Budget, Quantile
from gguf_bof4.paths import hidden_folder, refuse_special
from gguf_bof4.progress import Progress
from gguf_bof4.weight_errors import ErrorSums


@dataclass(frozen=True)
class RawValue:
    """A metadata value as the bytes of a file: its type and its value."""

    data: bytes


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the output.

    Attributes:
        source: gives its rows.
        planned_list: its outlier list in the output; it gets none where it has no outlier.
        source_list: its outlier list in the source.
        no_list: why it gets no outlier list although one was asked for.
        ready: gives the encoded tensor where calibration has made it.
        not_compensated: why errors were not compensated in that.
        is_refined: refinement has changed that.
        importance: of each column of each matrix, float32 [matrices, n], where it is known.
        errors: filled while it is encoded.
    """

    source: Source
    decision: Decision
    planned_list: PlannedList | None = None
    source_list: Tensor | None = None
    no_list: str | None = None
    ready: Callable[[], Encoded] | None = None
    not_compensated: str | None = None
    is_refined: bool = False
    importance: npt.NDArray[np.float32] | None = None
    errors: ErrorSums = field(default_factory=ErrorSums)

    @property
    def nbytes(self) -> int:
        return nbytes(self.source.shape, self.decision.qtype)

    @property
    def copied(self) -> bool:
        """The source has the type of the output."""
        return self.source.qtype == self.decision.qtype

    def job(self, options: Options) -> Job:
        """How it is encoded; reads the source's list.

        Raises:
            UserError: that list is not valid.
        """
        source, listed = self.source, self.source_list
        outliers = None if listed is None else read_list(listed, source.name, source.shape)
        encoder = options.chosen_encoder.block_encoder
        return Job(
            self.decision.qtype, encoder, self.planned_list, outliers, options.threads, self.importance, self.errors
        )

    def encoded(self, options: Options) -> Iterator[Bytes]:
        """Encode the tensor, a run of rows at a time, and fill its list."""
        if self.ready is None:
            yield from encode(self.source, self.job(options))
            return
        made = self.ready()
        if self.planned_list is not None and made.outliers is not None:
            self.planned_list.add(made.outliers)
        exact = read_floats(self.source, self.job(options)).view(np.uint8)
        add_errors(
            self.errors, made.data, self.decision.qtype, exact, gguf.GGMLQuantizationType.F32, made.outliers,
            options.threads,
        )  # fmt: skip
        yield made.data


class _EncodedTensor:
    """An array of uint8 to GGUFWriter, encoded while it is written, a run of rows at a time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, planned: PlannedTensor, options: Options, written: Callable[[str, int], None]) -> None:
        self._planned = planned
        self._options = options
        self._written = written
        self.nbytes = planned.nbytes
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[planned.decision.qtype]
        *rows, columns = planned.source.shape
        self.shape = (*rows, columns // block_size * block_bytes)

    def tofile(self, file: BinaryIO) -> None:
        """Append the tensor's bytes."""
        source = self._planned.source
        for encoded in self._planned.encoded(self._options):
            # not ndarray.tofile, which hides why a write failed
            file.write(np.ascontiguousarray(encoded).data)
            self._written(source.name, encoded.shape[0] * source.shape[-1])


class Writer(gguf.GGUFWriter):
    """GGUFWriter that also takes metadata values as raw bytes, and strings with bytes that are no text, escaped."""

    def add_key_value(self, key: str, val: Any, *args: Any, **kwargs: Any) -> None:
        """Add metadata; strings may be names of files."""
        if isinstance(val, str):
            val = val.encode(errors="backslashreplace").decode()
        super().add_key_value(key, val, *args, **kwargs)

    def _pack_val(self, val: Any, *args: Any, **kwargs: Any) -> bytes:
        if isinstance(val, RawValue):
            return val.data
        if isinstance(val, str):
            val = val.encode(errors="surrogateescape")  # a key of the source may be no UTF-8
        return bytes(super()._pack_val(val, *args, **kwargs))


HOW_MADE = ("bof4.encoder", "bof4.refined", "bof4.opq.quantile", "bof4.opq.bits")
"""Keys that say how tensors of this project's types were encoded: still true where all of them are copied."""

EQUALIZED = "bof4.equalized"
"""Channels were equalized: true of every file that is made of such a one."""


def add_format_metadata(
    writer: gguf.GGUFWriter, options: Options, tensors: Sequence[PlannedTensor], imatrix: Imatrix | None = None
) -> None:
    """Set general.file_type and quantization_version, bof4.* for the formats that are used, and quantize.imatrix.*.

    bof4.opq.* is the rule for all tensors. It and bof4.encoder stay as the source has them where every tensor of these
    formats is a copy.
    """
    metadata = writer.kv_data[0]
    for key in ("general.file_type", "general.quantization_version"):
        metadata.pop(key, None)  # gguf warns where a key is set twice
    old: dict[str, Any] = {key: metadata.pop(key) for key in HOW_MADE if key in metadata}
    writer.add_file_type(options.output_type.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    ours = [t for t in tensors if any(t.decision.qtype == f.type_id for f in FORMATS)]
    used = [f for f in FORMATS if any(t.decision.qtype == f.type_id for t in ours)]
    if used:
        writer.add_uint32("bof4.version", FORMAT_VERSION)
    if ours and all(t.copied for t in ours):
        metadata.update(old)
    elif ours:
        writer.add_string("bof4.encoder", options.encoder)
        if any(t.is_refined for t in tensors):
            writer.add_bool("bof4.refined", True)
        rule = options.list_rules.default
        if options.recipe is not None and not any(t.planned_list and t.planned_list.rule == rule for t in ours):
            rule = None  # the recipe names another rule for each tensor
        if isinstance(rule, Quantile):
            writer.add_float32("bof4.opq.quantile", rule.value)
        elif isinstance(rule, Budget):
            writer.add_float32("bof4.opq.bits", rule.bits)
    for fmt in used:
        writer.add_key_value(
            fmt.levels_key, list(fmt.levels), gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.INT8
        )
    if imatrix is not None:
        for key in [key for key in metadata if key.startswith("quantize.imatrix.")]:
            del metadata[key]
        for key, value in imatrix.metadata().items():
            kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
            writer.add_key_value(key, value, kind)


def refuse_source(output: Path, sources: Sequence[Path]) -> None:
    """Refuse an output that is a file of the source.

    Raises:
        UserError: it is; --force does not change that.
    """
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise UserError(f"the output {output} is a file of the source: give another name")


def _mode(output: Path) -> int | None:
    """The kind and permissions of what an output would replace, links followed; None where there is nothing.

    Raises:
        UserError: the system cannot look for it.
    """
    try:
        return output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        # a link whose target is missing would be lost
        return output.lstat().st_mode if output.is_symlink() else None
    except OSError as error:
        raise UserError(_message(output, error)) from error


def _refuse_folder(output: Path) -> None:
    raise UserError(f"the output {output} is a folder: give the name of a file")


def output_path(output: Path, type_name: str, in_parts: bool) -> Path:
    """The file to write, "{ftype}" in its name replaced by the type.

    Args:
        in_parts: the name is that of the parts before they are numbered, so a folder may have it.

    Raises:
        UserError: it has no name, there are other braces in it, or it is a folder, a device, a FIFO or a socket.
    """
    if output.name in {"", ".."}:
        _refuse_folder(output)
    try:
        named = output.with_name(gguf.fill_templated_filename(output.name, type_name))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"the output {output} has braces in its name: only {{ftype}} may be in braces") from error
    if (mode := _mode(named)) is not None:
        refuse_special(named)
        if stat.S_ISDIR(mode) and not in_parts:
            _refuse_folder(named)
    return named


def refuse_existing(outputs: Sequence[Path], force: bool) -> None:
    """Refuse to overwrite.

    Raises:
        UserError: an output exists and `force` is off, or cannot be replaced by a file.
    """
    for output in outputs:
        if (mode := _mode(output)) is None:
            continue
        if stat.S_ISDIR(mode):
            _refuse_folder(output)
        refuse_special(output)
        if not force:
            raise UserError(f"{output} exists already: give another name, or --force to overwrite it")


def _message(output: Path, error: OSError) -> str:
    if error.errno in DISK_FULL:
        free = shutil.disk_usage(output.parent).free
        return (
            f"{output} could not be written whole: {error.strerror} ({size_text(free)} are free there). "
            "Nothing was kept; make room, or write to another disk"
        )
    return f"{output} cannot be written: {error.strerror or error}"


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that temporary files are removed as after Ctrl-C."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_folder_of(output: Path) -> None:
    """Check that the folder of an output exists.

    Raises:
        UserError: it does not.
    """
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: the folder {output.parent} does not exist")


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output` to write into, removed in the end, also after an exception.

    Raises:
        UserError: the folder of the output is missing or cannot be written to.
    """
    check_folder_of(output)
    with _sigterm_unwinds(), contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(hidden_folder(output))
        except OSError as error:
            raise UserError(_message(output, error)) from error
        yield folder


def publish(folder: Path, output: Path, force: bool) -> tuple[Path, ...]:
    """Move the finished files of a staging folder beside it, all or none.

    Readers open a model by its first part, so that is removed first where parts are replaced, and moved last: a process
    that is killed in between leaves no model, rather than one of old and new parts.

    Raises:
        UserError: a name is taken, or a file cannot be moved.
    """
    staged = sorted(folder.iterdir())
    finals = [output.with_name(p.name) for p in staged]
    refuse_existing(finals, force)  # again, because encoding may have taken hours
    moved: list[Path] = []
    try:
        if len(finals) > 1:
            finals[0].unlink(missing_ok=True)
        for path, final in reversed(list(zip(staged, finals, strict=True))):
            path.replace(final)
            moved.append(final)
    except BaseException as error:
        for final in moved:
            final.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(_message(output, error)) from error
        raise
    return tuple(finals)


def part_names(writer: gguf.GGUFWriter, output: Path) -> tuple[Path, ...]:
    """The files of a filled writer, one per part."""
    return tuple(writer.format_shard_names(output))


def fill(writer: Writer, tensors: Sequence[PlannedTensor], options: Options, progress: Progress) -> None:
    """Add the planned tensors to the writer, each list after its weight; nothing is read yet."""
    total = sum(int(np.prod(t.source.shape, dtype=np.int64)) for t in tensors)
    done = 0

    def written(name: str, n_weights: int) -> None:
        nonlocal done
        done += n_weights
        progress(name, done, total)

    limit, taken = options.split_bytes, 0
    for planned in tensors:
        outliers = planned.planned_list
        room = planned.nbytes + (outliers.room if outliers else 0)
        # the rule of GGUFWriter, which could put a list into another part than its weight
        if limit and writer.tensors[-1] and taken + room > limit:
            writer.tensors.append({})
            taken = 0
        taken += room
        tensor: Any = _EncodedTensor(planned, options, written)  # has what the writer needs of an array
        writer.add_tensor(planned.source.name, tensor, raw_dtype=planned.decision.qtype)
        if outliers:
            array: Any = outliers
            writer.add_tensor(outliers.name, array)
            outliers.place(writer.tensors[-1], limit)


def write(writer: Writer, folder: Path, output: Path, lists: Sequence[PlannedList]) -> None:
    """Encode and write everything that was given to the writer, as `folder / output.name`.

    Args:
        lists: all lists of the writer.

    Raises:
        UserError: the disk is full or cannot be written to, a tensor cannot be encoded, or lists are so long that
            a part gets too large.
    """
    needed = sum(gguf.GGUFWriter.ggml_pad(t.nbytes, writer.data_alignment) for p in writer.tensors for t in p.values())
    needed += sum(planned.room for planned in lists)
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{output} needs {size_text(needed)}, but only {size_text(free)} are free there. "
            "Make room, or write to another disk"
        )
    try:
        writer.write_header_to_file(path=folder / output.name)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if lists:
            finish(writer, part_names(writer, folder / output.name), lists)
    except OSError as error:
        raise UserError(_message(output, error)) from error
    finally:
        # after an error the rest of a buffer cannot be written either: only the handles matter now
        with contextlib.suppress(OSError):
            writer.close()
