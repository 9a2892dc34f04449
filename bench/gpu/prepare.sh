#!/bin/bash
# Make the folder that check.sh needs, to be carried to a machine with a GPU: prepare.sh PYTHON TARGET
#
# PYTHON is that of a virtual environment with this project and its extra "dev". TARGET gets the bundle, the scripts, two
# small models with lists, two texts and wheels: 36 MB.
#
# Environment: WHEELS_PYTHON (version of Python there, 3.12; empty: no wheels)
set -euo pipefail
python=$1 target=$2
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
mkdir -p "$target"
target=$(cd "$target" && pwd)
"$(dirname "$python")/bof4" build --bundle "$target/bof4.tar.gz" --force
cp "$here"/{check.sh,gptq.py,make_llama.py,summary.py} "$target/"
PYTHONPATH="$project/tests:$project/tests/gpu" "$python" -m carried_models "$target"
version=${WHEELS_PYTHON-3.12}
rm -rf "$target/wheels" "$target/package"
# the folders that are links in gguf_bof4 are copied into it
mkdir "$target/package"
cp -rL "$project/gguf_bof4" "$target/package/"
find "$target/package" -name __pycache__ -prune -exec rm -r {} +
if [ -n "$version" ]; then
    mkdir "$target/wheels"
    platforms=(); for n in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
    # what gguf_bof4 imports, where torch, transformers and typer are installed
    "$python" -m pip download --quiet --no-deps --only-binary :all: --python-version "$version" --implementation cp \
        "${platforms[@]}" --platform manylinux2014_x86_64 --dest "$target/wheels" -c "$project/constraints.txt" \
        gguf cffi pycparser
fi
du -ch "$target"/* | tail -n 20
