"""llama-cpp-python on the patched llama.cpp, by the recipe of the README."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_bof4
from gguf_bof4.ggml_patch.source import cache_root, fetch_archive, snapshot
from gguf_bof4.paths import atomic_path

ROOT = Path(gguf_bof4.__file__).parents[1]

SCRIPT = """
import sys
import llama_cpp

model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
question = {"role": "user", "content": "What is the capital of France?"}
answer = model.create_chat_completion([question], max_tokens=24, temperature=0)
print(llama_cpp.llama_cpp._lib._name)
print(answer["choices"][0]["message"]["content"])
"""


BY_FUNCTION = 'import os, gguf_bof4; os.environ["LLAMA_CPP_LIB_PATH"] = str(gguf_bof4.library_folder())'
"""The line of docs/python.md."""


@pytest.fixture(scope="session")
def bindings() -> Path:
    """A folder with llama-cpp-python alone, without a llama.cpp of its own; installed once, into the cache."""
    target = cache_root() / f"{snapshot().package}-{snapshot().version}"
    if not target.is_dir():
        with atomic_path(target) as partial:
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", partial, fetch_archive(),
                 "diskcache==5.6.3"],
                check=True, env={**os.environ, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
            )  # fmt: skip
    return target


def generate(
    bindings: Path, model: Path, setting: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    return subprocess.run(
        [sys.executable, "-c", f"{setting}\n{SCRIPT}", model],
        capture_output=True, text=True, check=False, timeout=120,
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(bindings), str(ROOT)]), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("by_function", [False, True])
def test_it_generates_with_the_build(bindings: Path, built: Path, smol_bof4: Path, by_function: bool) -> None:
    if by_function:
        result = generate(bindings, smol_bof4, BY_FUNCTION)
    else:
        result = generate(bindings, smol_bof4, LLAMA_CPP_LIB_PATH=str(built))
    assert result.returncode == 0, result.stderr
    library, answer = result.stdout.split("\n", 1)
    assert Path(library).parent == built
    # after "Paris" the two likeliest tokens are close: the processor's rounding decides whether the answer ends
    assert answer.startswith("The capital of France is Paris")


def test_the_documented_line_and_version_are_those_of_the_test() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    assert BY_FUNCTION in page
    assert f"llama-cpp-python=={snapshot().version}" in page


def test_it_contains_no_llama_cpp(bindings: Path, smol_bof4: Path) -> None:
    result = generate(bindings, smol_bof4)
    assert result.returncode == 1
    assert "Shared library with base name 'llama' not found" in result.stderr
