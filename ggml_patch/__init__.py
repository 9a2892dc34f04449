"""The patched llama.cpp: the pinned snapshot, the patches, our sources, and fetch-patch-build."""

from pathlib import Path

ROOT = Path(__file__).parent
SOURCES = ROOT / "src"
PATCHES = ROOT / "patches"
LOCK = ROOT / "lock.json"
