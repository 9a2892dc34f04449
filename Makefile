# make demo           convert SmolLM2-135M to BOF4_S and chat with it; with the programs of a wheel in dist/, else built
# make test           everything that CI checks: lint, the build, all tests in WORKERS processes
# make test-unit      the tests that need neither a build nor the network: under a minute
# make test-nightly   100,000 mutated inputs to the command line, kill -9 and full disks at twenty moments of each kind,
#                     every variant of the CPU backend, AArch64's under qemu; every generation of GPUs; all operations
#                     on Vulkan without a GPU
# make lint           ruff, mypy, import-linter and clang-format
# make format         format the C, C++ and CUDA sources with clang-format
# make build          the patched llama.cpp, with upstream's tests of the types
# make wheel          a wheel with its programs for every x86-64 processor, in dist/; WHEEL="--machine aarch64" and so on
# make bench-quality  these types and llama.cpp's: bench/quality.csv and the picture; QUALITY="--large" for more of them
# make bench-speed    tokens per second of both, in turns: bench/speed.csv and the picture; SPEED="--rounds 9" and so on
# make bench-gpu      time of each product on an NVIDIA GPU: bench/gpu.csv; CUDA="--no-flash-attention" builds faster
# make gpu-check      all checks of the CUDA kernels on this machine's NVIDIA GPU; results go to bench/gpu/CARD
# make gpu-carry      build/gpu-check, the folder for the same on another machine: bench/gpu/README.md
# make clean          remove the virtual environment and what the package build left
#
# Each target makes what it needs: a virtual environment in .venv with the package and its dependencies, and the build of
# the patched llama.cpp (some minutes, once; kept in the user's cache folder).

PYTHON ?= python3
BIN    := .venv/bin
FUZZ   ?= 100000

# processes of `make test`. A test file runs in one of them, in its order, and the files begin in theirs; a worker that
# dies fails its test instead of being replaced
WORKERS  ?= 2
PARALLEL = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# the generated header has the form that its generator gives it
C_SOURCES = $(shell find ggml_patch/src tests/native/sources -type f \
	\( -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' \) ! -name bof4-format.h)

# the newest wheel with programs for this machine, where one was made or downloaded
READY := $(firstword $(shell ls -t dist/gguf_bof4-*linux*_$(shell uname -m).whl 2>/dev/null))

.PHONY: demo test test-unit test-nightly lint format build wheel bench-quality bench-speed bench-gpu gpu-check gpu-carry clean

ifeq ($(READY),)
demo: build
	$(BIN)/bof4 demo
else
demo: build/demo/installed
	build/demo/bin/bof4 demo
endif

build/demo/installed: $(READY)
	$(PYTHON) -m venv build/demo
	build/demo/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall $(READY)
	touch $@

test: lint build
	$(BIN)/python -m pytest $(PARALLEL)

test-unit: .venv/installed
	$(BIN)/python -m pytest tests/unit

test-nightly: build
	BOF4_FUZZ=$(FUZZ) BOF4_KILLS=20 BOF4_VARIANTS=all BOF4_VULKAN=all BOF4_CUDA_ARCHITECTURES="75 80 86 89 90 120a" \
		$(BIN)/python -m pytest tests/native/test_cuda_compile.py \
		tests/native/test_command_line_fuzz.py tests/native/test_convert_killed.py tests/native/test_portable.py \
		tests/native/test_vulkan.py tests/native/test_wheel.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy -p gguf_bof4
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)

format: .venv/installed
	$(BIN)/clang-format -i $(C_SOURCES)

bench-quality: .venv/installed
	$(BIN)/bof4 build
	$(BIN)/bof4 bench quality $(QUALITY)

bench-speed: .venv/installed
	$(BIN)/bof4 build
	$(BIN)/bof4 bench speed $(SPEED)
	$(BIN)/bof4 bench kernels --output bench/kernels.csv

bench-gpu: .venv/installed
	@nvidia-smi -L || { echo "bench-gpu needs an NVIDIA GPU and its driver; nvidia-smi shows none." >&2; exit 1; }
	$(BIN)/bof4 build --cuda $(CUDA)
	"$$($(BIN)/bof4 build --cuda $(CUDA) --print-bin)/bof4-bench-cuda" --csv bench/gpu.csv $(GPU)

gpu-carry: .venv/installed
	bench/gpu/prepare.sh $(BIN)/python build/gpu-check

gpu-check: export PYTHON = $(CURDIR)/$(BIN)/python
gpu-check: export WHEELS_PYTHON =
gpu-check: .venv/installed
	@nvidia-smi -L || { echo "gpu-check needs an NVIDIA GPU and its driver; nvidia-smi shows none." >&2; exit 1; }
	bench/gpu/prepare.sh $(BIN)/python build/gpu-check
	TOTAL=$${TOTAL:-3600} WORK=$(CURDIR)/build/gpu-work bash build/gpu-check/check.sh; result=$$?; \
		bench/gpu/keep.sh build/gpu-work/out && exit $$result

build: .venv/installed
	$(BIN)/bof4 build --tests

wheel: .venv/installed
	$(BIN)/python -m gguf_bof4.ggml_patch wheel dist $(WHEEL)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
