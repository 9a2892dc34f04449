#!/bin/bash
# Keep the results of check.sh in bench/gpu/CARD/: keep.sh OUT [TARGET]
#
# OUT is the folder of its logs; TARGET the folder of all cards, by default that of this script.
set -euo pipefail
out=$1 target=${2:-$(cd "$(dirname "$0")" && pwd)}
card=$(sed -n 's/^card: //p' "$out/summary.txt" | head -1)
if [ -z "$card" ] || [ "$card" = unknown ]; then
    echo "keep.sh: $out/summary.txt names no card: was nvidia-smi there?" >&2
    exit 1
fi
# "NVIDIA H100 80GB HBM3" is h100-80gb-hbm3
name=$(tr '[:upper:]' '[:lower:]' <<<"$card" | sed -E 's/^nvidia //; s/[^a-z0-9]+/-/g; s/^-|-$//g')
mkdir -p "$target/$name"
cp "$out/summary.txt" "$target/$name/"
[ ! -f "$out/bench.csv" ] || cp "$out/bench.csv" "$target/$name/"
echo "$target/$name"
