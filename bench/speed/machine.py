"""The name of this machine's processor, so that figures of different kinds of machines can lie in one file."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_AMD = {
    (25, range(0x10, 0x20)): "Zen 4",
    (25, range(0x60, 0x80)): "Zen 4",
    (25, range(0xA0, 0xB0)): "Zen 4",
    (25, range(0x100)): "Zen 3",
    (26, range(0x100)): "Zen 5",
    (23, range(0x30, 0x100)): "Zen 2",
    (23, range(0x30)): "Zen",
}
"""Microarchitectures by family and models of CPUID; the first that fits."""

_INTEL = {
    0x55: "Skylake-SP or Cascade Lake",
    0x6A: "Ice Lake-SP",
    0x8F: "Sapphire Rapids",
    0xCF: "Emerald Rapids",
    0xAD: "Granite Rapids",
    0x97: "Alder Lake",
    0x9A: "Alder Lake",
    0xB7: "Raptor Lake",
    0xAA: "Meteor Lake",
    0xBD: "Lunar Lake",
    0xC6: "Arrow Lake",
}
"""Microarchitectures by the model of CPUID, family 6. Virtual machines often hide the name of the product."""


def name_in(cpuinfo: str) -> str:
    """The microarchitecture that the text of /proc/cpuinfo means, or the name of the product; empty without either."""
    fields = dict(re.findall(r"^([a-zA-Z_ ]+?)\s*:\s*(.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    vendor, family, model = fields.get("vendor_id"), fields.get("cpu family", ""), fields.get("model", "")
    if family.isdigit() and model.isdigit():
        if vendor == "AuthenticAMD":
            for (of_family, models), name in _AMD.items():
                if int(family) == of_family and int(model) in models:
                    return name
        if vendor == "GenuineIntel" and int(family) == 6 and int(model) in _INTEL:
            return _INTEL[int(model)]
    return str(fields.get("model name", ""))


def machine_name() -> str:
    """The same of this machine: "Zen 4"; else what the system calls its processor, "arm" on Apple computers."""
    found = name_in(_CPUINFO.read_text(encoding="utf-8", errors="replace")) if _CPUINFO.exists() else ""
    return found or platform.processor() or platform.machine()
