"""bof4 build without building: what it finds, runs and remembers, and its errors."""

import json
import os
import re
from pathlib import Path

import pytest
from command_line import bof4

from gguf_bof4.ggml_patch import SOURCES, cuda, vulkan
from gguf_bof4.ggml_patch import build as building
from gguf_bof4.ggml_patch.apply import SOURCES_IN_TREE
from gguf_bof4.ggml_patch.build import PROGRAMS, Build, NotBuiltError, build, build_of, installed_bin
from gguf_bof4.ggml_patch.toolchain import BuildError

PRINTS = """#!/bin/sh
{lines}
exit {code}
"""


def write_program(path: Path, code: int, *lines: str) -> None:
    """A program that prints these lines and leaves with this exit code."""
    path.write_text(PRINTS.format(lines="\n".join(f"echo '{line}'" for line in lines), code=code))
    path.chmod(0o755)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with a compiler, CMake and Ninja that do nothing, and the source of a build unpacked."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("c++", "cmake", "ninja"):
        write_program(folder / name, 0, f"{name} was here")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    (build_of().tree / SOURCES_IN_TREE).mkdir(parents=True)
    return folder


def test_without_a_build_the_remedy_is_named() -> None:
    refused = bof4("build", "--print-bin")
    assert refused.returncode == 1
    assert "run `bof4 build`" in refused.stderr
    assert refused.stdout == ""


def test_a_folder_that_is_no_build_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_BIN", str(tmp_path))
    with pytest.raises(NotBuiltError, match="not the bin folder"):
        installed_bin()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler.*apt install g\+\+"):
        build()


def test_a_build_runs_cmake_then_ninja_and_is_not_repeated(tools: Path) -> None:
    write_program(tools / "ninja", 0, "[1/2] step", "[2/2] step")
    steps: list[tuple[str, int, int]] = []
    made = build(report=lambda *step: steps.append(step))
    assert steps == [("compiling", 1, 2), ("compiling", 2, 2)]
    assert made.targets() == set(PROGRAMS)
    log = (made.folder / "build.log").read_text()
    assert log.index("cmake was here") < log.index("[1/2] step")
    write_program(tools / "ninja", 1, "was run again")
    assert build() == made
    assert installed_bin() == made.bin


@pytest.mark.parametrize(("program", "step"), [("cmake", "configuring"), ("ninja", "compiling")])
def test_a_failing_step_shows_its_last_lines_and_its_log(tools: Path, program: str, step: str) -> None:
    write_program(tools / program, 3, *(f"line {i}" for i in range(60)), "it is broken")
    with pytest.raises(BuildError, match=rf"{step} failed[\s\S]*line 59\nit is broken\n.*build\.log") as caught:
        build()
    assert "line 9\n" not in str(caught.value)
    log = build_of().folder / "build.log"
    assert str(log) in str(caught.value)
    assert "line 0\n" in log.read_text()
    assert build_of().targets() == set()
    with pytest.raises(NotBuiltError):
        installed_bin()


def test_each_set_of_options_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_of()
    assert build_of() == plain
    assert build_of(("-DGGML_AVX512=OFF",)) != plain
    monkeypatch.setenv("CXXFLAGS", "-O1")
    assert build_of() != plain


def write_nvcc(toolkit: Path, release: str) -> Path:
    program = toolkit / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -v ]; then echo "#$ TOP=$(dirname "$0")/.."; '
        f"else echo 'Cuda compilation tools, release {release}, V{release}.131'; fi\n"
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def fake_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An nvcc that prints its version and compiles nothing, named by CUDACXX."""
    program = write_nvcc(tmp_path / "toolkit", "12.4")
    monkeypatch.setenv("CUDACXX", str(program))
    monkeypatch.setenv("BOF4_CACHE", str(tmp_path / "cache"))
    return program


def test_the_toolkit_is_that_of_cudacxx(fake_nvcc: Path) -> None:
    toolkit = cuda.find_toolkit()
    assert toolkit == cuda.Toolkit(str(fake_nvcc), "12.4.131", fake_nvcc.parents[1])
    assert toolkit.release == (12, 4)


def test_a_missing_cuda_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    refused = bof4("build", "--cuda")
    assert refused.returncode == 1
    assert f"looked for {tmp_path / 'nvcc'}" in refused.stderr
    assert "Install the CUDA toolkit" in refused.stderr
    assert "CUDACXX" in refused.stderr


def test_a_cuda_build_has_a_folder_of_its_own_for_each_compiler(
    fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = cuda.cmake_arguments(("90",), flash_attention=True)
    older = build_of(arguments)
    assert len({build_of(), older, build_of(cuda.cmake_arguments(("90",), flash_attention=False))}) == 3
    monkeypatch.setenv("CUDACXX", str(write_nvcc(tmp_path / "newer", "12.6")))
    assert build_of(arguments) != older


def mark_built(build: Build, *more: str) -> Path:
    """Mark a build as finished; its folder of programs."""
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
    with pytest.raises(cuda.ToolkitError, match="not a CUDA architecture"):
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


def write_headers(folder: Path, number: str, more: str = "") -> Path:
    """A folder of Vulkan headers of version 1.3.`number`, as far as they are read."""
    (folder / "vulkan").mkdir(parents=True)
    (folder / "vulkan/vulkan.hpp").write_text("")
    (folder / "vulkan/vulkan_core.h").write_text(
        f"#define VK_HEADER_VERSION {number}\n"
        "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n" + more
    )
    return folder


def write_glslc(folder: Path, text: str = "echo shaderc v2024.0") -> Path:
    folder.mkdir(parents=True)
    program = folder / "glslc"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def test_headers_that_are_too_old_for_vulkan_are_named_with_the_remedy(tmp_path: Path) -> None:
    old = write_headers(tmp_path / "old", "239")
    refused = bof4("build", "--vulkan", "--vulkan-headers", str(old), "--glslc", str(write_glslc(tmp_path / "bin")))
    assert refused.returncode == 1
    assert f"the Vulkan headers in {old} are 1.3.239" in refused.stderr
    assert "1.3.272 or newer" in refused.stderr
    assert "--vulkan-headers" in refused.stderr


def test_what_vulkan_lacks_is_named_with_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = write_headers(tmp_path / "new", "280", vulkan.NEEDED_EXTENSION)
    for options, lacks in (
        (("--vulkan-headers", str(tmp_path)), "has no vulkan/vulkan.hpp"),
        (("--vulkan-headers", str(headers), "--glslc", str(tmp_path / "none")), "is no program"),
    ):
        refused = bof4("build", "--vulkan", *options)
        assert refused.returncode == 1
        assert lacks in refused.stderr
        assert "apt install libvulkan-dev glslc spirv-headers" in refused.stderr
    broken = write_glslc(tmp_path / "broken", "exit 3")
    refused = bof4("build", "--vulkan", "--vulkan-headers", str(headers), "--glslc", str(broken))
    assert refused.returncode == 1
    assert "does not print a version" in refused.stderr


def test_the_vulkan_sdk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = write_headers(tmp_path / "sdk/include", "280", vulkan.NEEDED_EXTENSION)
    program = write_glslc(tmp_path / "sdk/bin")
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "sdk"))
    assert vulkan.find_toolkit() == vulkan.Toolkit(program, "shaderc v2024.0", headers, "1.3.280")
    before = build_of(vulkan.cmake_arguments())
    assert before != build_of()
    program.write_text("#!/bin/sh\necho shaderc v2025.2\n")
    assert build_of(vulkan.cmake_arguments()) != before  # the build keeps what the compiler wrote


@pytest.mark.parametrize("options", [("--glslc", "glslc"), ("--vulkan-headers", "include")])
def test_options_of_vulkan_need_it(options: tuple[str, str]) -> None:
    refused = bof4("build", *options)
    assert refused.returncode != 0
    assert "need --vulkan" in refused.stderr


def test_kinds_of_builds_exclude_each_other() -> None:
    refused = bof4("build", "--vulkan", "--cuda")
    assert refused.returncode != 0
    assert "exclude each other" in refused.stderr


def test_what_vulkan_lacks_is_named_alike_in_a_patched_tree_and_by_bof4_build() -> None:
    """Where CMake is run by hand: in a bundle, or after `bof4 patch`."""
    text = (SOURCES / "vulkan" / "requirements.cmake").read_text().replace("\\\n", "")
    assert vulkan.PACKAGES in text
    assert vulkan.OLD_HEADERS.replace("--vulkan-headers", "-DVulkan_INCLUDE_DIR=FOLDER") in text
    assert vulkan.NEEDED_EXTENSION in text
    for message in re.findall(r'FATAL_ERROR "([^"]*)"', text):
        assert vulkan.remedy(message), message


@pytest.mark.parametrize(
    ("output", "helps"),
    [
        ("  no Vulkan\n  loader found to link with (libvulkan).", "libvulkan-dev"),
        ("  no shader compiler found (glslc).", "glslc"),
        ("  CMake finds no\n  SPIRV-Headers.", "spirv-headers"),
        ("  the Vulkan headers in /usr/include are too\n  old.", "--vulkan-headers"),
        ("cannot compile matmul_f16 (exit code 1)", "--glslc"),
        ("-DSPIRV-Headers_DIR=/x\nundefined reference to main", ""),
    ],
)
def test_known_failures_of_vulkan_come_with_a_remedy(output: str, helps: str) -> None:
    found = vulkan.remedy(output)
    assert helps in found
    assert bool(found) == bool(helps)
