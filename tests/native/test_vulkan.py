"""The Vulkan backend on lavapipe, Vulkan on the CPU: upstream's tests of operations for both types, with and without
lists, with float activations and with integer dot products; validation layers; a model with lists against the CPU.

lavapipe compiles a pipeline in 3 to 26 CPU seconds, so that few sizes are run here; `BOF4_VULKAN=all`
(`make test-nightly`) runs all of upstream's.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from c_programs import link_with_build
from listed import divergence, predict, write_decoded
from program import bof4
from tiny_models import write_llama
from vulkan_machine import Machine, build_backend, integer_dot_library, vulkan_machine

from gguf_bof4 import native
from gguf_bof4.bench.speed.results import read_rows
from gguf_bof4.bench.speed.synthetic import Shape, write_synthetic
from gguf_bof4.formats import FORMATS, Format, Kernels

VULKAN_FORMATS = tuple(fmt for fmt in FORMATS if Kernels.VULKAN in fmt.kernels)

ALL = os.environ.get("BOF4_VULKAN") == "all"

FEW = {
    # one column, and tiles: of batches, permutations and broadcasts, too
    "MUL_MAT": r"type_a=bof4_\w,type_b=f32,m=16,n=(1|16),k=256,",
    "MUL_MAT_ID": r"type_a=bof4_\w,type_b=f32,n_mats=4,n_used=2,b=.,m=512,n=(1|32),k=256",
    "GET_ROWS": r"type=bof4_",
}
"""Cases of upstream's operations that both paths compute."""

COPIES = {"CPY": r"=bof4_", "SET_ROWS": r"type_dst=bof4_"}

FUSIONS = r"type=bof4_\w,glu_op=2,m=1,n=32,k=256,use_id=0,.*with_bias=1,with_gate=0,.*batch_dims=\[1,1\]"
"""Of a product with the addition that follows it."""

ON_VULKAN = ("-fa", "off", "-ub", "1")
"""Tokens one by one, as lavapipe compiles the tiles of every product for minutes; the operations' tests have them."""


SPEED_MODEL = Shape(layers=1, embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=512)


@dataclass(frozen=True)
class Run:
    """What test-backend-ops reports of one operation: how many cases passed, by type and whether with a list."""

    passed: Counter[tuple[str, bool]]
    output: str


@pytest.fixture(scope="module")
def machine() -> Machine:
    return vulkan_machine()


@pytest.fixture(scope="module")
def environment(machine: Machine, built: Path) -> dict[str, str]:
    """In which the ordinary programs have a Vulkan device."""
    return {
        **os.environ, **machine.environment(), "GGML_BACKEND_PATH": str(build_backend(machine)),
        "GALLIVM_PERF": "nopt",  # pipelines compile in a third of the time
    }  # fmt: skip


@pytest.fixture(scope="module")
def with_integers(
    machine: Machine, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    library = integer_dot_library(machine, tmp_path_factory.mktemp("vulkan") / "integer_dot_products.so")
    return {**environment, "LD_PRELOAD": str(library), "GGML_VK_FORCE_MMVQ": "1"}


def operations(built: Path, environment: dict[str, str], operation: str, pattern: str) -> Run:
    """Run upstream's tests of one operation on lavapipe. A process for each: Mesa 22 does not survive long ones."""
    if not (built / "test-backend-ops").is_file():
        pytest.skip("test-backend-ops is not built: `bof4 build --tests` builds it")
    done = subprocess.run(
        [built / "test-backend-ops", "test", "-b", "Vulkan0", "-o", operation, "-p", pattern],
        capture_output=True, text=True, check=False, timeout=3600, env=environment,
    )  # fmt: skip
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, output[-3000:]
    passed = re.findall(rf"^ *{operation}\((.*=(bof4_\w+?)\b.*)\): OK$", output, re.MULTILINE)
    return Run(Counter((of_type, "list=1" in case) for case, of_type in passed), output)


@pytest.fixture(scope="module")
def runs(
    built: Path, environment: dict[str, str], with_integers: dict[str, str]
) -> dict[tuple[str, bool], Future[Run]]:
    """All runs, by operation and whether integer dot products are used; two at a time."""
    wanted = [(name, pattern, integers) for name, pattern in FEW.items() for integers in (False, True)]
    wanted += [(name, pattern, False) for name, pattern in COPIES.items()]
    wanted += [("MUL_MAT_VEC_FUSION", FUSIONS, False)]
    with ThreadPoolExecutor(2) as pool:
        return {
            (name, integers): pool.submit(
                operations, built, with_integers if integers else environment, name, r"=bof4_" if ALL else pattern
            )
            for name, pattern, integers in wanted
            if not (integers and name == "GET_ROWS")
        }


@pytest.mark.parametrize("integers", [False, True], ids=["float", "integer"])
@pytest.mark.parametrize("operation", ["MUL_MAT", "MUL_MAT_ID"])
def test_products(runs: dict[tuple[str, bool], Future[Run]], operation: str, integers: bool) -> None:
    run = runs[operation, integers].result()
    print(operation, dict(run.passed))
    assert ("int dot: 1" in run.output) == integers
    for fmt in VULKAN_FORMATS:
        for listed in (False, True):
            assert run.passed[fmt.c_name, listed] >= (14 if operation == "MUL_MAT" else 6), (fmt.name, listed)
    # left out, as with upstream's types: permuted weights, broadcasts over dimension 3, and half-precision activations,
    # which the CPU does not compute
    left_out = re.findall(rf"^ *{operation}\((.*)\): (?!OK)(.*)$", run.output, re.MULTILINE)
    assert all("not supported" in result for _, result in left_out), left_out
    for case, _ in left_out:
        assert "type_b=f16" in case or "per=[0,1,2,3]" not in case or re.search(r"nr=\[.,2\]", case), case


def test_rows(runs: dict[tuple[str, bool], Future[Run]]) -> None:
    """Half of upstream's cases are slices of weights that begin where a device cannot bind a buffer."""
    run = runs["GET_ROWS", False].result()
    for fmt in VULKAN_FORMATS:
        assert run.passed[fmt.c_name, False] == run.passed[fmt.c_name, True] == 4
    assert all("vs0=1" in case for case in re.findall(r"GET_ROWS\((.*)\): not supported", run.output))


@pytest.mark.parametrize("operation", COPIES)
def test_copies(runs: dict[tuple[str, bool], Future[Run]], operation: str) -> None:
    run = runs[operation, False].result()
    print(operation, dict(run.passed))
    for fmt in VULKAN_FORMATS:
        assert run.passed[fmt.c_name, False] >= (7 if operation == "CPY" else 24)


def test_products_are_fused_with_additions(runs: dict[tuple[str, bool], Future[Run]]) -> None:
    run = runs["MUL_MAT_VEC_FUSION", False].result()
    assert all(run.passed[fmt.c_name, False] for fmt in VULKAN_FORMATS), run.output[-2000:]


def test_half_precision_activations_and_what_is_refused(
    built: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """The CPU does not compute products with them, so that upstream's tests leave them out."""
    program = link_with_build("check_vulkan.cpp", built, tmp_path / "check_vulkan")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = {
        (name, int(columns)): float(error)
        for name, columns, error in re.findall(r"^product (\w+) (\d+) (\S+)$", done.stdout, re.MULTILINE)
    }
    assert len(errors) == 3 * len(VULKAN_FORMATS)
    for (name, columns), error in errors.items():
        # float sums; with more than eight columns weights and sums are halves, and 512 roundings of sums, each of 2^-12
        # of about 0.05, add up to 0.0003. Wrong weights would be off by 1 / sqrt(512) = 0.04
        assert error < (1e-6 if columns <= 8 else 3e-3), (name, columns)
    supported = dict(re.findall(r"^supports (\S+) (\d)$", done.stdout, re.MULTILINE))
    assert supported == {
        "product": "1", "listed": "1", "half": "1", "listed-half": "0", "experts": "1", "experts-half": "0",
        "slice": "0",
    }  # fmt: skip


def test_validation_layers_find_no_error(machine: Machine, built: Path, with_integers: dict[str, str]) -> None:
    """Pipelines come from the driver's cache, where the other tests have left them."""
    if machine.layers is None:
        pytest.skip("the validation layers are not here: `apt install vulkan-validationlayers`")
    layers = {"VK_LAYER_PATH": str(machine.layers), "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation"}

    def errors(operation: str, pattern: str) -> set[str]:
        run = operations(built, {**with_integers, **layers}, operation, pattern)
        assert run.output.count(": OK") > 2, run.output[-2000:]
        return set(re.findall(r"VUID-[\w-]+|UNASSIGNED-[\w-]+", run.output))

    products = r"type_b=f32,m=16,n=1,k=256,bs=\[3,2\]"
    # what upstream's own types cause, such as structures that are newer than the layers
    upstreams = errors("MUL_MAT", f"type_a=f16,{products}") | errors("GET_ROWS", "type=f16")
    ours = errors("MUL_MAT", rf"type_a=bof4_\w,{products}") | errors("GET_ROWS", "=bof4_")
    ours |= errors("CPY", COPIES["CPY"]) | errors("SET_ROWS", COPIES["SET_ROWS"])
    print(f"upstream's: {sorted(upstreams)}; ours: {sorted(ours)}")
    assert ours <= upstreams


def test_a_model_with_lists_predicts_as_on_the_cpu(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers on lavapipe; one of two, and the other on the CPU; one each on two devices that are both lavapipe."""
    model = write_llama(tmp_path / "listed.gguf", is_listed=lambda name: name.startswith("blk.") and "norm" not in name)
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    exact = predict(write_decoded(model, tmp_path / "decoded.gguf"), text, "--device", "none", length=64, chunks=1)
    on_cpu = divergence(predict(model, text, "--device", "none", length=64, chunks=1), exact).mean()
    for name, value in {**environment, "GGML_VK_VISIBLE_DEVICES": "0,0"}.items():
        monkeypatch.setenv(name, value)
    places = {
        "all layers": ("--device", "Vulkan0", "-ngl", "99"),
        "one of two": ("--device", "Vulkan0", "-ngl", "1"),
        "two devices": ("--device", "Vulkan0,Vulkan1", "--split-mode", "layer", "--tensor-split", "1,1", "-ngl", "99"),
    }
    # between two devices that are both lavapipe, activations are sometimes read too early while the machine is busy: 8
    # of 45 runs of the same model in F32, without these types. A wrong weight or list is wrong every time
    runs = {name: 5 if name == "two devices" else 1 for name in places}
    found = {
        name: min(
            divergence(predict(model, text, *options, *ON_VULKAN, length=64, chunks=1), exact).mean()
            for _ in range(runs[name])
        )
        for name, options in places.items()
    }
    print(f"KL divergence from the decoded weights: {found}, CPU {on_cpu:.2g}")
    # activations are floats on the device and 8-bit integers on the CPU
    assert found["all layers"] < on_cpu
    assert found["two devices"] < on_cpu
    assert found["one of two"] < 2 * on_cpu


def test_speed_is_measured_on_the_device(environment: dict[str, str], tmp_path: Path) -> None:
    """One token at a time: lavapipe compiles the tiles of longer prompts for minutes."""
    model, output = tmp_path / "tiny.gguf", tmp_path / "speed.csv"
    write_synthetic(SPEED_MODEL, model)
    command = (
        "bench", "speed", "--model", str(model), "--types", "BOF4_S,BOF4_K", "--opq", "off,0.95", "-p", "0", "-n", "2",
        "-r", "1", "-t", "1", "--rounds", "1", "--output", str(output), "--files", str(tmp_path / "files"),
    )  # fmt: skip
    on_device = bof4(*command, "-ngl", "99", **environment)
    assert on_device.returncode == 0, on_device.stderr
    # the title above the table is wrapped at its width, and the processor's name is in front
    assert "vulkan: llvmpipe" in " ".join(on_device.stdout.split())
    rows = read_rows(output)
    assert len(rows) == 4
    for row in rows:
        assert row.instructions.startswith("vulkan: llvmpipe")
        assert row.tokens_per_second > 0
        assert row.bandwidth == 0  # of the processor's memory; that of a GPU is not known
    for claim in ("GB/s", "bandwidth bound"):
        assert claim not in on_device.stdout + on_device.stderr
    on_cpu = bof4(*command, "-ngl", "0", **environment)
    assert on_cpu.returncode == 0, on_cpu.stderr
    assert [row.instructions for row in read_rows(output)[4:]] == [native.instruction_set()] * 4


def tile_defines(variant: str, define: str) -> list[str]:
    """Of the shader with tiles for cooperative matrices, as bof4-shaders.h gives them."""
    loads = "1" if variant == "cm2" else "8"
    values = {
        define: "1", "BOF4_LEVEL_TABLE": "1", "LOAD_VEC_A": loads, "LOAD_VEC_B": loads,
        "B_TYPE_SCALAR": "float16_t", "B_TYPEV4": "f16vec4",
        "B_TYPE": "float16_t" if variant == "cm2" else "f16mat2x4", "D_TYPE": "float", "FLOAT16": "1",
        "FLOAT_TYPE": "float16_t", "FLOAT_TYPEV2": "f16vec2", "FLOAT_TYPEV4": "f16vec4", "FLOAT_TYPEV8": "f16mat2x4",
        "ACC_TYPE": "float", "ACC_TYPEV2": "vec2", "ACC_TYPE_VEC4": "vec4",
        **({} if variant == "cm2" else {"COOPMAT": "1"}),
    }  # fmt: skip
    return [f"-D{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize("fmt", VULKAN_FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("variant", ["cm1", "cm2"])
def test_shaders_with_cooperative_matrices_compile(
    machine: Machine, patched_tree: Path, tmp_path: Path, variant: str, fmt: Format
) -> None:
    """lavapipe has no cooperative matrices: these are never run here."""
    source = "mul_mm_cm2.comp" if variant == "cm2" else "mul_mm.comp"
    done = subprocess.run(
        [*machine.glslc, "-fshader-stage=compute", "--target-env=vulkan1.3", f"-I{patched_tree}/ggml/src",
         *tile_defines(variant, f"DATA_A_{fmt.name}"), patched_tree / "ggml/src/ggml-vulkan/vulkan-shaders" / source,
         "-o", tmp_path / "tiles.spv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
