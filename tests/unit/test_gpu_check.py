"""bench/gpu: the shell logic of the check, with stub programs for toolkit, GPU and llama.cpp; its Python parts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from gguf_bof4.bench.gpu import gptq, make_llama, summary

SCRIPTS = Path(gptq.__file__).parent

STUB = r"""#!/bin/bash
# One program for all names: what it prints is enough for check.sh. $STUB_FAIL: names that fail; $STUB_SLEEP: that hang
name=$(basename "$0")
echo "$name $*" >>"$STUB_LOG"
copy() { cp "$STUB" "$1"; chmod +x "$1"; }
case "$name $*" in *"$STUB_SLEEP"*) [ -z "$STUB_SLEEP" ] || sleep 60 ;; esac
for one in $STUB_FAIL; do [ "$name" != "$one" ] || { echo "$one fails"; exit 3; }; done
case "$name" in
nvidia-smi)
    case "$*" in *compute_cap*) echo 9.0 ;; *query-gpu=name*) echo "NVIDIA H100 80GB HBM3" ;; esac ;;
nvcc) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
cmake)
    [ "$1" != --version ] || exit 0
    if [ "$1" != --build ]; then mkdir -p build-cuda/bin; touch build-cuda/CMakeCache.txt; exit 0; fi
    while [ "$1" != --target ]; do shift; done
    shift
    for target in "$@"; do
        [ "$target" != bof4 ] || target=libbof4.so
        copy "build-cuda/bin/$target"
    done ;;
c++) while [ $# -gt 0 ]; do [ "$1" != -o ] || copy "$2"; shift; done ;;
test-backend-ops)
    [ "$1" != perf ] || echo "  MUL_MAT(type_a=bof4_s,type_b=f32,m=4096,n=1,k=14336,bs=[1,1]): 9 runs - 20.00 us/run"
    case "$*" in *Vulkan0*) [ -n "$STUB_NO_VULKAN" ] || echo "ggml_vulkan: 0 = NVIDIA H100 (NVIDIA)" ;; esac
    echo "  MUL_MAT(type_a=bof4_s,type_b=f32,m=16,n=1): OK"
    echo "  1/1 tests passed" ;;
bof4-bench-cuda)
    while [ $# -gt 0 ]; do
        if [ "$1" = --csv ]; then
            echo "model,matrices,columns,type,us,share_of_read_bandwidth" >"$2"
            echo "8b,q/o,1,bof4_s,5.00,0.7512" >>"$2"
            echo "8b,q/o,16,bof4_s,12.34,0.31" >>"$2"
        fi
        shift
    done ;;
llama-perplexity)
    case "$*" in
    *"--kl-divergence "* | *"--kl-divergence")
        echo "Mean    KLD:   0.002000 ±   0.000100"; echo "Median  KLD:   $STUB_KLD" ;;
    esac ;;
llama-bench) echo "n_prompt,n_gen,avg_ts,stddev_ts,model_size"; echo "0,128,150.5,0.5,4000000000" ;;
compute-sanitizer) echo "========= ERROR SUMMARY: 0 errors" ;;
ncu) echo "  dram__throughput.avg.pct_of_peak_sustained_elapsed % 70.0" ;;
python3)
    case "$*" in
    *"import torch"*) exit "$STUB_NO_TORCH" ;;
    *gptq.py*) echo "GPTQ on cuda: mean KLD 0.0300 +- 0.0010, 4.0 s" ;;
    *"bench kernels"*) echo "BOF4_AMX=$BOF4_AMX: $*" ;;
    *) exec "$STUB_PYTHON" "$@" ;;
    esac ;;
esac
"""

PROGRAMS = ("nvidia-smi", "nvcc", "cmake", "ninja", "c++", "compute-sanitizer", "ncu", "python3")

ALL = ("ops", "bench", "models", "gptq", "memcheck", "racecheck", "llama", "perf", "counters", "vulkan", "amx")


@dataclass(frozen=True)
class Outcome:
    """What a run of check.sh left."""

    returncode: int
    summary: str
    calls: str

    def result_of(self, phase: str) -> str:
        """The summary's words for a phase; empty where it says nothing."""
        found = re.search(rf"^{phase} +(.*?)(?: +\d+ s)?$", self.summary, re.MULTILINE)
        return found[1] if found else ""


class Machine:
    """A machine whose programs are stubs, and the carried folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.carried, self.out = folder, folder / "carried", folder / "work" / "out"
        tools = folder / "tools"
        tools.mkdir(parents=True)
        self.stub = folder / "stub"
        self.stub.write_text(STUB)
        for name in PROGRAMS:
            shutil.copy(self.stub, tools / name)
            (tools / name).chmod(0o755)
        self.carried.mkdir()
        shutil.copy(SCRIPTS / "check.sh", self.carried)
        shutil.copy(SCRIPTS / "summary.py", self.carried)
        for name in ("one-s.gguf", "two-s.gguf", "text.txt", "gptq.py"):
            (self.carried / name).touch()
        # the real one writes gigabytes
        (self.carried / "make_llama.py").write_text("import sys; open(sys.argv[2], 'w').close()")
        (folder / "cpuinfo").write_text("flags : fpu amx_tile amx_int8\n")
        tree = folder / "llama.cpp-bof4"
        tree.mkdir()
        (tree / "CMakeLists.txt").touch()
        with tarfile.open(self.carried / "bof4.tar.gz", "w:gz") as tar:
            tar.add(tree, tree.name)
        self.carry_programs("vulkan.tar.gz", "test-backend-ops", "llama-perplexity", "llama-bench")

    def carry_programs(self, archive: str, *names: str) -> None:
        """An archive of programs that were built elsewhere."""
        with tarfile.open(self.carried / archive, "w:gz") as tar:
            for name in names:
                shutil.copy(self.stub, self.folder / name)
                (self.folder / name).chmod(0o755)
                tar.add(self.folder / name, name)

    def check(self, **variables: str) -> Outcome:
        """Run check.sh; keyword arguments are environment variables."""
        log = self.folder / "calls"
        log.write_text("")
        stubs = {"STUB_FAIL": "", "STUB_SLEEP": "", "STUB_KLD": "0.002", "STUB_NO_TORCH": "0", "STUB_NO_VULKAN": ""}
        done = subprocess.run(
            ["bash", self.carried / "check.sh"], capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": f"{self.folder / 'tools'}:{os.environ['PATH']}", "STUB": str(self.stub),
                 "STUB_LOG": str(log), "STUB_PYTHON": sys.executable, "WORK": str(self.folder / "work"),
                 "CPUINFO": str(self.folder / "cpuinfo"), **stubs, **variables},
        )  # fmt: skip
        text = (self.out / "summary.txt").read_text() if (self.out / "summary.txt").is_file() else done.stderr
        return Outcome(done.returncode, text, log.read_text())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_all_phases_run_and_a_second_call_does_not_build(machine: Machine) -> None:
    first = machine.check()
    assert first.returncode == 0, first.summary
    assert {phase: first.result_of(phase) for phase in ALL} == dict.fromkeys(ALL, "ok")
    assert first.summary.endswith("ALL OK\n")
    for line in (
        "card: NVIDIA H100 80GB HBM3", "operations:   1/1 tests passed", "MUL_MAT bof4_s OK: 1;", "bof4_s 75%",
        "bof4_s 12.3", "ERROR SUMMARY: 0 errors", "KLD two-s.gguf -ngl 99 -ub 1: median 0.002", "GPTQ on cuda",
        "LLAMA-8B bof4_s+opq tg128       150.5", "20.00 us/run", "dram__throughput",
        "VULKAN ggml_vulkan: 0 = NVIDIA H100", "VULKAN   1/1 tests passed", "LLAMA-8B vulkan bof4_s+opq tg128",
        "KLD two-s.gguf Vulkan -ngl 99 -ub 8: median", "KLD two-s.gguf with AMX: median 0.002",
        "LLAMA-8B cpu bof4_k BOF4_AMX=0 tg128",
        "KERNELS BOF4_AMX=0 BOF4_AMX=0: -c from gguf_bof4.cli import main; main() bench kernels --types",
    ):  # fmt: skip
        assert line in first.summary, line
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in first.calls
    assert "-C cuda-toolchain.cmake" in first.calls
    sanitized = [line for line in first.calls.splitlines() if line.startswith("compute-sanitizer")]
    assert len(sanitized) == 2
    kernels = ("bof4", "ggml_type176", "ggml_type177")
    assert all(f"kernel_substring={name}" in line for line in sanitized for name in kernels)
    assert len(list(machine.out.iterdir())) <= 8
    second = machine.check(ONLY="ops")
    assert second.returncode == 0
    assert "cmake --build" not in second.calls
    assert {phase: second.result_of(phase) for phase in ALL} == {**dict.fromkeys(ALL, ""), "ops": "ok"}


def test_a_phase_that_fails_is_named_and_the_others_run(machine: Machine) -> None:
    machine.check(ONLY="ops")
    failing = machine.folder / "work/llama.cpp-bof4/build-cuda/bin/test-backend-ops"
    failing.write_text("#!/bin/bash\necho 'CUDA error'; exit 3\n")
    found = machine.check(ONLY="ops bench racecheck counters", STUB_FAIL="compute-sanitizer")
    assert found.returncode == 1
    assert found.result_of("ops") == found.result_of("racecheck") == "FAILED, rc 3"
    assert found.result_of("bench") == found.result_of("counters") == "ok"
    assert found.summary.endswith("FAILED: 2\n")


def test_a_divergence_from_the_cpu_fails(machine: Machine) -> None:
    found = machine.check(ONLY="models", STUB_KLD="0.02")
    assert found.returncode == 1
    assert found.result_of("models") == "FAILED, rc 1"
    nothing = machine.check(ONLY="models", STUB_KLD="")
    assert nothing.result_of("models") == "FAILED, rc 1"
    assert "median none" in nothing.summary


def test_a_phase_is_stopped_after_its_time_and_the_rest_runs(machine: Machine) -> None:
    found = machine.check(ONLY="ops bench", PHASES="ops:2:1 bench:9:1", STUB_SLEEP="test-backend-ops test")
    assert found.returncode == 1
    assert found.result_of("ops") == "TIMED OUT after 2 s"
    assert found.result_of("bench") == "ok"


def test_time_for_the_phases_behind_it_is_left(machine: Machine) -> None:
    """A phase gets what the least of the chosen ones behind it leaves, and is skipped where that is too little."""
    table = "ops:500:200 bench:500:200 models:500:900 perf:500:250"
    found = machine.check(ONLY="ops bench perf", TOTAL="600", PHASES=table)
    assert found.returncode == 0
    assert re.fullmatch(r"skipped: 5\d\d s left|skipped: 600 s left", found.result_of("ops"))
    assert found.result_of("bench") == found.result_of("perf") == "ok"


def test_a_build_that_fails_shows_its_end(machine: Machine) -> None:
    found = machine.check(STUB_FAIL="cmake")
    assert found.returncode == 1
    assert found.result_of("configure") == "FAILED, rc 3"
    assert {found.result_of(phase) for phase in ALL} == {""}
    assert not (machine.folder / "work/stamp").exists()


def test_without_torch_or_tools_phases_are_skipped_with_the_reason(machine: Machine) -> None:
    found = machine.check(STUB_NO_TORCH="1", NO_NCU="1", ONLY="gptq counters")
    assert found.returncode == 0
    assert found.result_of("gptq") == "skipped: python3 has no torch that uses the GPU"
    assert found.result_of("counters").startswith("skipped: ")


def test_amx_is_checked_where_the_processor_has_it(machine: Machine) -> None:
    diverging = machine.check(ONLY="amx", STUB_KLD="0.02")
    assert diverging.result_of("amx") == "FAILED, rc 1"
    (machine.folder / "cpuinfo").write_text("flags : fpu avx512f\n")
    without = machine.check(ONLY="amx")
    assert without.returncode == 0
    assert without.result_of("amx") == "skipped: this processor has no AMX"


def test_vulkan_is_checked_where_its_programs_are_carried(machine: Machine) -> None:
    no_device = machine.check(ONLY="vulkan", STUB_NO_VULKAN="1")
    assert no_device.result_of("vulkan") == "FAILED, rc 1"
    assert "VULKAN: no device" in no_device.summary
    assert machine.check(ONLY="vulkan", STUB_KLD="0.02").result_of("vulkan") == "FAILED, rc 1"
    (machine.carried / "vulkan.tar.gz").unlink()
    without = machine.check(ONLY="vulkan")
    assert (without.returncode, without.result_of("vulkan")) == (0, "skipped: no vulkan.tar.gz")


def test_prebuilt_programs_are_used(machine: Machine) -> None:
    machine.carry_programs("prebuilt.tar.gz", "test-backend-ops", "bof4-bench-cuda", "llama-perplexity")
    (machine.carried / "bof4.tar.gz").unlink()
    found = machine.check(ONLY="ops models llama")
    assert found.returncode == 0, found.summary
    assert "cmake" not in re.sub("cmake --version.*", "", found.calls)
    assert found.result_of("models") == "ok"
    assert found.result_of("llama").startswith("skipped: ")


def test_results_are_kept_in_a_folder_of_the_card(machine: Machine, tmp_path: Path) -> None:
    machine.check(ONLY="bench")
    target = tmp_path / "kept"
    target.mkdir()
    subprocess.run([SCRIPTS / "keep.sh", machine.out, target], check=True, capture_output=True)
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == {
        "h100-80gb-hbm3/summary.txt", "h100-80gb-hbm3/bench.csv",
    }  # fmt: skip
    (machine.out / "summary.txt").write_text("card: unknown\n")
    refused = subprocess.run([SCRIPTS / "keep.sh", machine.out, target], check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "names no card" in refused.stderr


SMALL = {"layers": 2, "n": 512, "ff": 1024, "heads": 4, "kv": 2, "vocab": 256}


@pytest.mark.parametrize("name", [*(t for t in make_llama.TYPES if t != "f32"), "bof4_s+opq", "bof4_k+opq"])
def test_a_random_llama_is_a_gguf_file_of_its_type(tmp_path: Path, name: str) -> None:
    target = tmp_path / "llama.gguf"
    assert make_llama.write_llama(name, target, SMALL) == target.stat().st_size
    reader = gguf.GGUFReader(target)
    of = name.removesuffix("+opq")
    matrices = [t for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    assert len(matrices) == 2 * 7
    assert {t.tensor_type.name.lower() for t in matrices} == {of}
    assert sum(t.name.endswith(".opq") for t in reader.tensors) == (14 if "+" in name else 0)
    # block sizes are those of the gguf package
    assert [t.n_bytes for t in matrices] == [
        t.n_elements // block * size for t in matrices for block, size in [gguf.GGML_QUANT_SIZES[t.tensor_type]]
    ]


def test_products_are_a_table_of_shares_and_times() -> None:
    row = {"model": "8b", "matrices": "q/o", "columns": "1", "type": "bof4_s"}
    row |= {"us": "5", "share_of_read_bandwidth": ".7"}
    lines = summary.products([row, {**row, "type": "q4_0", "us": "6"}, {**row, "columns": "8"}])
    assert [line.split() for line in lines[1:]] == [
        ["8b", "q/o", "x1", "bof4_s", "70%", "q4_0", "70%"], ["8b", "q/o", "x8", "bof4_s", "5.0"],
    ]  # fmt: skip


def test_the_verdict_on_gptq() -> None:
    search, good = gptq.Divergence(0.05, 0.001), gptq.Divergence(0.03, 0.001)
    assert gptq.verdict(search, {"cuda": good, "cpu": gptq.Divergence(0.0312, 0.001)}) == []
    (far,) = gptq.verdict(search, {"cuda": gptq.Divergence(0.045, 0.001), "cpu": good})
    assert "cuda and cpu differ" in far
    nan = gptq.verdict(search, {"cuda": gptq.Divergence(float("nan"), 0.001), "cpu": good})
    assert len(nan) == 2
    assert gptq.parse_divergence("Mean    KLD:   0.012345 ±   0.000678\n") == gptq.Divergence(0.012345, 0.000678)
