"""bof4 build: what it finds, and what it says when something is missing. (The build itself is what all tests use.)"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from program import bof4

from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch import cuda
from gguf_bof4.ggml_patch.build import PROGRAMS, Build, NotBuiltError, build, build_of, installed_bin
from gguf_bof4.ggml_patch.toolchain import BuildError, find_tools


@pytest.fixture
def own_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the project's own build, whatever BOF4_BIN the developer has set."""
    monkeypatch.delenv("BOF4_BIN", raising=False)


def only(folder: Path, *programs: str) -> str:
    """A PATH that holds nothing but these programs."""
    for name in programs:
        (folder / name).symlink_to(shutil.which(name) or "")
    return str(folder)


def test_print_bin_names_the_folder_of_the_programs() -> None:
    printed = bof4("build", "--print-bin")
    assert printed.returncode == 0
    folder = Path(printed.stdout.strip())
    assert folder == installed_bin()
    for program in PROGRAMS:
        if program.startswith("llama-"):
            assert os.access(folder / program, os.X_OK)


def test_without_a_build_every_command_names_the_remedy(tmp_path: Path) -> None:
    refused = bof4("build", "--print-bin", BOF4_CACHE=str(tmp_path), BOF4_BIN="")
    assert refused.returncode == 1
    assert "run `bof4 build`" in refused.stderr
    assert refused.stdout == ""


@pytest.mark.usefixtures("own_build")
def test_a_folder_that_is_no_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_BIN", str(tmp_path))
    with pytest.raises(NotBuiltError, match="not the bin folder"):
        installed_bin()


@pytest.mark.usefixtures("own_build")
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*apt install g\+\+"):
        build()


@pytest.mark.usefixtures("own_build")
def test_cmake_and_ninja_come_from_the_index_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", only(tmp_path, "c++"))
    cmake, ninja = find_tools(lambda what, done, total: None)
    assert Path(cmake).is_relative_to(tmp_path / "cache")
    for tool in (cmake, ninja):
        version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
        assert any(c.isdigit() for c in version.stdout)


@pytest.mark.usefixtures("own_build")
def test_a_failing_step_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "print('[1/2] step'); print('it is broken'); raise SystemExit(3)"]
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(BuildError, match=r"compiling failed[\s\S]*it is broken[\s\S]*log"):
        building._run(command, log, "compiling", lambda *step: steps.append(step))
    assert steps == [("compiling", 1, 2)]
    assert "it is broken" in log.read_text()


@pytest.mark.usefixtures("own_build")
def test_each_set_of_options_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_of()
    assert build_of() == plain
    assert build_of(("-DGGML_AVX512=OFF",)) != plain
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert build_of() != plain


@pytest.fixture
def fake_nvcc(own_build: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An nvcc that says what it is and compiles nothing."""
    program = tmp_path / "toolkit" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -v ]; then echo "#$ TOP=$(dirname "$0")/.."; '
        "else echo 'Cuda compilation tools, release 12.4, V12.4.131'; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(program))
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    cuda._read_toolkit.cache_clear()
    return program


def test_the_toolkit_is_that_of_cudacxx(fake_nvcc: Path) -> None:
    toolkit = cuda.find_toolkit()
    assert toolkit == cuda.Toolkit(str(fake_nvcc), "12.4.131", fake_nvcc.parents[1])
    assert toolkit.release == (12, 4)


@pytest.mark.usefixtures("own_build")
def test_a_missing_cuda_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = bof4("build", "--cuda", CUDACXX=str(tmp_path / "nvcc"))
    assert refused.returncode == 1
    assert f"looked for {tmp_path / 'nvcc'}" in refused.stderr
    assert "Install the CUDA toolkit" in refused.stderr
    assert "CUDACXX" in refused.stderr


def test_a_cuda_build_has_a_folder_of_its_own_for_each_compiler(fake_nvcc: Path) -> None:
    arguments = cuda.cmake_arguments(("90",), flash_attention=True)
    older = build_of(arguments)
    assert len({build_of(), older, build_of(cuda.cmake_arguments(("90",), flash_attention=False))}) == 3
    fake_nvcc.write_text(fake_nvcc.read_text().replace("12.4", "12.6"))
    cuda._read_toolkit.cache_clear()
    assert build_of(arguments) != older


def mark_built(build: Build, *more: str) -> Path:
    """Pretend that a build is whole; its folder of programs."""
    build.folder.mkdir(parents=True)
    build.marker.write_text(json.dumps({"targets": [*PROGRAMS, *more]}))
    return build.bin


@pytest.mark.usefixtures("fake_nvcc")
def test_the_build_made_last_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = cuda.cmake_arguments(("90",), flash_attention=False)
    cpu, gpu = mark_built(build_of()), mark_built(build_of(arguments), *cuda.TARGETS)
    assert installed_bin() == cpu
    building.choose(arguments)
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    assert installed_bin() == cpu
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    assert installed_bin() == gpu
    build_of(arguments).marker.unlink()
    assert installed_bin() == cpu  # these sources have not been built for GPUs
    building.choose(())
    assert installed_bin() == cpu


@pytest.mark.usefixtures("fake_nvcc")
def test_a_gpu_build_alone_says_that_it_needs_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = cuda.cmake_arguments(("90",), flash_attention=False)
    mark_built(build_of(arguments), *cuda.TARGETS)
    building.choose(arguments)
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    with pytest.raises(NotBuiltError, match="needs NVIDIA's driver"):
        installed_bin()


@pytest.mark.usefixtures("fake_nvcc")
def test_print_bin_names_the_gpu_build() -> None:
    built = mark_built(build_of(cuda.cmake_arguments(("86", "90"), flash_attention=False)), *cuda.TARGETS)
    options = ("build", "--cuda", "--cuda-architectures", "8.6,90", "--print-bin")
    assert bof4(*options, "--no-flash-attention").stdout.strip() == str(built)
    other = bof4(*options)
    assert other.returncode == 1
    assert "run `bof4 build --cuda`" in other.stderr
    building.choose(cuda.cmake_arguments(("86", "90"), flash_attention=False))
    assert bof4("build", "--cuda", "--print-bin").stdout.strip() == str(built)


@pytest.mark.parametrize(
    ("text", "names"),
    [("90", ("90",)), ("86;90", ("86", "90")), ("8.6, 120a-real", ("86", "120a-real")), ("native", ("native",))],
)
def test_lists_of_architectures(text: str, names: tuple[str, ...]) -> None:
    assert cuda.parse_architectures(text) == names


@pytest.mark.parametrize("text", ["sm_90", "90,", "hopper", ""])
def test_what_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(cuda.ToolkitError, match="no CUDA architecture"):
        cuda.parse_architectures(text)


def test_architectures_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpu_architectures", tuple)
    for version, oldest in (("11.7.64", "61-virtual"), ("12.8.93", "61-virtual"), ("13.0.88", "75-virtual")):
        chosen = cuda.default_architectures(cuda.Toolkit("nvcc", version, Path("/")))
        assert chosen[0] == oldest
        assert ("90-virtual" in chosen) == (version != "11.7.64")
    monkeypatch.setattr(cuda, "gpu_architectures", lambda: ("90",))
    assert cuda.default_architectures(cuda.Toolkit("nvcc", "13.0.88", Path("/"))) == ("90-real",)


@pytest.mark.parametrize(
    ("output", "helps"),
    [
        ('  Target "ggml-cuda" links to:\n\n    CUDA::cublas\n\n  but it was not found.', "nvidia-cublas==13.0"),
        ("common.cuh:12:10: fatal error: cublas_v2.h: No such file or directory", "libcublas-dev-13-0"),
        ('  Target "ggml-cuda" links to:\n\n    CUDA::cuda_driver\n', "cuda-driver-dev-13-0"),
        ("#error -- unsupported GNU version! gcc versions later than 15 are not supported!", "CUDAHOSTCXX=g++-12"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_61'", "--cuda-architectures"),
        ("undefined reference to main", ""),
    ],
)
def test_known_failures_come_with_a_remedy(output: str, helps: str) -> None:
    found = cuda.remedy(cuda.Toolkit("nvcc", "13.0.88", Path("/")), output)
    assert helps in found
    assert bool(found) == bool(helps)


def test_the_wheel_carries_patches_and_sources(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (root / "ggml_patch").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"gguf_bof4/ggml_patch/{path.relative_to(root / 'ggml_patch')}" in names
    assert "gguf_bof4/convert/__init__.py" in names


def test_help_names_every_command() -> None:
    shown = bof4("--help")
    assert shown.returncode == 0
    for command in ("build", "patch", "convert", "inspect", "verify", "run", "codebook", "demo"):
        assert f" {command} " in shown.stdout


def test_wrong_usage_exits_with_2() -> None:
    assert bof4("build", "--no-such-option").returncode == 2
    assert bof4("no-such-command").returncode == 2
