"""What nvcc made of a CUDA file: instructions, registers and local memory of each kernel, read from the object file.

No tool of the CUDA toolkit is needed. The objects are compiled with `--no-compress`, so that the ELF files of the
device code are in them as they are. Instructions of compute capability 7.0 and newer have 16 bytes.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_INSTRUCTION = 16
_ELF = b"\x7fELF\x02\x01"
_CUDA_MACHINE = 190

# the low 9 bits of an instruction, which are the same for all kinds of operands
_OPERATION = 0x1FF
_BRANCH, _DP4A, _TENSOR_CORE, _NOP = 0x147, 0x026, 0x037, 0x118

_INTERNAL = re.compile(r"__nv_static_\w+?_cu_[0-9a-f]+_\d+_*|_INTERNAL_\w+?_cu_[0-9a-f]+_\d+::")
"""What nvcc puts in front of kernels with internal linkage: it has a hash of the file's path."""

_WITH_DATA = 0x04
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
"""Attributes in .nv.info: a symbol and the bytes of its stack frame; a symbol and its registers."""


@dataclass(frozen=True)
class Kernel:
    """Measures of a kernel.

    Attributes:
        instructions: in all, without the padding behind the last.
        loop: instructions of the innermost loop of integer dot products, of several the one with the most; 0: none.
        products: integer dot products (dp4a or tensor core) in that loop.
        registers: of a thread.
        local: bytes of local memory of a thread: arrays and spilled registers.
    """

    instructions: int
    loop: int
    products: int
    registers: int
    local: int


@dataclass(frozen=True)
class _Section:
    name: str
    info: int
    data: bytes


def _sections(elf: bytes) -> list[_Section]:
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * size) for i in range(count)]
    strings = elf[headers[names][4] :]
    return [
        _Section(strings[h[0] : strings.index(b"\0", h[0])].decode(), h[7], elf[h[4] : h[4] + h[5]]) for h in headers
    ]


def _attributes(info: bytes, wanted: int) -> Iterator[tuple[int, int]]:
    """Symbols and values of an attribute in a section .nv.info."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if (form, attribute) == (_WITH_DATA, wanted):
            yield struct.unpack_from("<II", info, at + 4)
        at += 4 + (size if form == _WITH_DATA else 0)  # in other forms the value is in place of the size


def _branch_target(word: int, at: int, architecture: int) -> int:
    """Index of the instruction that the branch at index `at` goes to.

    Args:
        word: the first 64 bits of the branch. It has the distance from the next instruction in units of 4 bytes: in
            the bits from 34 on, and the lowest eight in the bits from 16 on if the architecture is 90 or newer.
    """
    distance = (word >> 34) - (1 << 30 if word >> 63 else 0)
    if architecture >= 90:
        distance = distance << 8 | word >> 16 & 0xFF
    return at + 1 + distance * 4 // _INSTRUCTION


def _measure(code: bytes, architecture: int) -> tuple[int, int, int]:
    """Instructions of a kernel, of its loop of dot products, and dot products in that."""
    words = [struct.unpack_from("<Q", code, at)[0] for at in range(0, len(code), _INSTRUCTION)]
    operations = [word & _OPERATION for word in words]
    total = len(words)
    # behind the last instruction is a branch to itself, then padding
    while total and operations[total - 1] == _NOP:
        total -= 1
    found = []
    for at, word in enumerate(words):
        if operations[at] == _BRANCH and 0 <= (first := _branch_target(word, at, architecture)) < at:
            products = sum(operation in (_DP4A, _TENSOR_CORE) for operation in operations[first : at + 1])
            if products:
                found.append((first, at, products))
    innermost = [
        (products, last + 1 - first)
        for first, last, products in found
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b, _ in found)
    ]
    products, loop = max(innermost, default=(0, 0))
    return total, loop, products


def _kernels_of_elf(elf: bytes) -> Iterator[tuple[str, Kernel]]:
    (flags,) = struct.unpack_from("<I", elf, 0x30)
    architecture = flags >> 8 & 0xFF
    sections = _sections(elf)
    info = b"".join(section.data for section in sections if section.name == ".nv.info")
    frames, registers = dict(_attributes(info, _FRAME_SIZE)), dict(_attributes(info, _REGISTERS))
    for section in sections:
        if section.name.startswith(".text."):
            total, loop, products = _measure(section.data, architecture)
            symbol = section.info & 0xFFFFFF
            kernel = Kernel(total, loop, products, registers[symbol], frames[symbol])
            yield section.name.removeprefix(".text."), kernel


def kernels(data: bytes) -> dict[str, Kernel]:
    """The kernels in an object file, by their names in C++, without arguments."""
    found: dict[str, Kernel] = {}
    at = data.find(_ELF, 1)
    while at >= 0:
        if struct.unpack_from("<H", data, at + 18)[0] == _CUDA_MACHINE:
            found.update(_kernels_of_elf(data[at:]))
        at = data.find(_ELF, at + 1)
    names = demangled(list(found))
    return dict(zip(names, found.values(), strict=True))


def demangled(names: list[str]) -> list[str]:
    """Names of kernels in C++, template arguments included, without return type and arguments of the function."""
    shown = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_short(line) for line in shown.stdout.splitlines()]


def _short(signature: str) -> str:
    depth = 0
    for at, character in enumerate(signature):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            signature = signature[:at]
            break
    return _INTERNAL.sub("", signature).removeprefix("void ")
