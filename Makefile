# make demo   convert SmolLM2-135M to BOF4_S and talk to it
# make test   everything that CI checks
# make lint   ruff and mypy alone
# make bench-gpu   time per product on an NVIDIA GPU: bench/gpu.csv; CUDA="--no-flash-attention" builds faster
# make bench-quality   these types and llama.cpp's: bench/quality.csv and the picture; QUALITY="--large" has more
# make bench-speed   tokens per second of both, in turns: bench/speed.csv and the picture; SPEED="--rounds 9" and so on
#
# Each does all of its own set-up: a virtual environment in .venv, the package and its dependencies, and the
# build of the patched llama.cpp (some minutes, once; kept in the user's cache folder).

PYTHON ?= python3
BIN    := .venv/bin

.PHONY: demo test lint build bench-quality bench-speed bench-gpu clean

demo: build
	$(BIN)/bof4 demo

test: lint build
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy -p gguf_bof4

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

build: .venv/installed
	$(BIN)/bof4 build --tests

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
