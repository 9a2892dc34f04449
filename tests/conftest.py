"""Tiers of tests, and the fixtures that more than one tier uses.

A test's tier is the folder that it is in, and its marker: `pytest -m native`. Tests of other tiers that take a fixture
with a real model have the marker `models`, too.

    unit    no network, no native build (unit/conftest.py refuses both); under a minute in all
    native  the build of the patched llama.cpp, a compiler; some fetch the pinned source and SmolLM2
    models  real models, from the package index into the cache
    gpu     an NVIDIA GPU
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from listed import write_listed
from once import one_at_a_time

from gguf_bof4.convert import convert
from gguf_bof4.ggml_patch.build import installed_bin
from gguf_bof4.packaged_models import fetch_minilm
from gguf_bof4.reference_models import reference_folder, reference_model
from gguf_bof4.reference_texts import evaluation_text

TIERS = ("unit", "native", "models", "gpu")
"""Folders here, and markers of pyproject.toml, in the order in which they run: what fails early costs least."""

LONG = ("test_portable.py", "test_vulkan.py", "test_cuda_compile.py", "test_search_command.py", "test_models.py")
"""Files that take minutes, the first ones for builds that others use: first in their tiers, so that none of two workers
waits for a build or for the other one in the end."""

OF_MODELS = {"smol", "smol_folder", "gemma", "minilm_folder", "evaluation"}
"""Fixtures that fetch models or texts; those that are made from them ask for them in turn."""

# on a machine with other load neither the time of an example nor that of drawing one says anything about the code
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure() -> None:
    """Threads that wait sleep, in this process and those that it starts: OpenMP's otherwise spin, which takes the cores
    from other workers. On two busy cores, tests of gptq take two thirds of the time."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0]
        assert tier in TIERS, f"{item.path} is in no folder of a tier: {', '.join(TIERS)}"
        item.add_marker(tier)
        if tier == "native" and OF_MODELS & set(getattr(item, "fixturenames", ())):
            item.add_marker("models")
    items.sort(key=lambda item: (TIERS.index(item.path.relative_to(here).parts[0]), item.path.name not in LONG))


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the built programs; `make test` builds them first."""
    return installed_bin()


@pytest.fixture(scope="session")
def smol() -> Path:
    """SmolLM2-135M-Instruct, matrices in F32, embeddings in F16."""
    with one_at_a_time("models"):
        return reference_model("smol")


@pytest.fixture(scope="session")
def smol_folder() -> Path:
    """The same model as a Hugging Face folder, in float32."""
    with one_at_a_time("models"):
        return reference_folder()


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M, matrices in F32, embeddings in F16."""
    with one_at_a_time("models"):
        return reference_model("gemma")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, in float32."""
    with one_at_a_time("models"):
        return fetch_minilm()


@pytest.fixture(scope="session")
def evaluation() -> Path:
    """English technical prose that no model here was calibrated on."""
    with one_at_a_time("models"):
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


@pytest.fixture(scope="session")
def smol_listed(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smol model, matrices in BOF4_S with outlier lists, by the numpy reference, embeddings in F16."""
    target = tmp_path_factory.mktemp("smol-listed") / "listed.gguf"
    yield write_listed(smol, target)
    target.unlink()


@pytest.fixture(scope="session")
def smol_opq(built: Path, smol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smol model as `bof4 convert` writes it: BOF4_S with outlier lists; only the encoder is the fastest one."""
    target = tmp_path_factory.mktemp("smol-opq") / "smol.gguf"
    convert(smol, target, type="BOF4_S", encoder="absmax")
    yield target
    target.unlink()
