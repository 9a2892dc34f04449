#!/bin/bash
# All checks of the CUDA kernels on a machine with an NVIDIA GPU: correctness first, then speed. No network is used.
#
#     bash DIR/check.sh            from anywhere; DIR is what prepare.sh made (README.md here)
#
# DIR/bof4.tar.gz         the bundle of `bof4 build --bundle`; needed, unless there is prebuilt.tar.gz
# DIR/prebuilt.tar.gz     the files of build-cuda/bin of the same bundle, built elsewhere; tried first
# DIR/vulkan.tar.gz       programs of `bof4 build --vulkan --tests`, and libraries that NVIDIA's driver wants (README.md)
# DIR/*-s.gguf, text.txt  small models with lists: their predictions on the GPU against the CPU's
# DIR/gptq.py, package/, wheels/, calibration.txt    the encoder gptq on the GPU against the CPU; needs Python with torch
# DIR/make_llama.py       a llama of 7.2 billion random weights, for llama-bench; needs Python with numpy
#
# Environment:
#   TOTAL   seconds for everything (525). With more, phases may take longer in proportion.
#   ONLY    phases to run, "ops bench" for example; the names are those of PHASES below
#   WORK    folder of the build (/tmp/bof4-gpu). It is kept: a second call does not build again.
#   OUT     folder of the logs ($WORK/out): eight files, the summary in summary.txt
#   ARCH    architecture to compile for, 90 for example (that of the GPU)
#   PYTHON  Python with numpy, and with torch for the phase gptq (python3)
#   JOBS    parallel compilers (one for each core)
#   NO_NCU=1  do not read hardware counters
#   PHASES  another table of phases
#   CPUINFO file with the features of the processor (/proc/cpuinfo)
#
# Exit code: 0 if no phase failed. A phase that is skipped for lack of time, or of a tool, is named and does not fail.
set -u
DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOTAL=${TOTAL:-525} WORK=${WORK:-/tmp/bof4-gpu} JOBS=${JOBS:-$(nproc)} PYTHON=${PYTHON:-python3}
OUT=${OUT:-$WORK/out}
mkdir -p "$WORK" "$OUT" || exit 2
WORK=$(cd "$WORK" && pwd) OUT=$(cd "$OUT" && pwd)
# models of gigabytes are written to memory where there is a place for that
SHM=/dev/shm; [ -w $SHM ] || SHM=$WORK
TREE=$WORK/llama.cpp-bof4 BUILD=$TREE/build-cuda BIN=$TREE/build-cuda/bin
RESULTS=() FAILED=0
rm -f "$OUT"/{facts,summary}.txt "$OUT"/{build,ops,bench,sanitizer,models}.log "$OUT/bench.csv"

# name:seconds at most:seconds without which it is not started, in the order in which they run
PHASES=${PHASES:-"ops:100:15 bench:120:40 models:60:15 gptq:90:30 memcheck:70:30 racecheck:50:25 llama:110:25 perf:80:30
    counters:40:25 vulkan:150:60 amx:140:60"}

left() { echo $((TOTAL - SECONDS)); }
wanted() { [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $1 "* ]]; }
note() { printf '[%3d s] %s\n' $SECONDS "$*"; }
plain() { sed 's/\x1b\[[0-9;]*m//g' "$@"; }
skip() { wanted "$1" || return 0; RESULTS+=("$(printf '%-10s skipped: %s' "$1" "$2")"); note "$1 skipped: $2"; }

# limited NAME LIMIT LOG FUNCTION [ARGUMENT...]: run a function for at most LIMIT seconds, its output behind that in LOG
limited() {
    local name=$1 limit=$2 log=$OUT/$3 began=$SECONDS rc said=ok run
    shift 3
    note "$name, at most $limit s"
    echo "== $name" >>"$log"
    printf -v run '%q ' "$@"
    # a process group of its own, so that nothing of it is left
    timeout -k 5 "$limit" bash -c "$run" >>"$log" 2>&1; rc=$?
    case $rc in 0) ;; 124 | 137) said="TIMED OUT after $limit s" ;; *) said="FAILED, rc $rc" ;; esac
    [ $rc -eq 0 ] || FAILED=$((FAILED + 1))
    RESULTS+=("$(printf '%-10s %-24s %3d s' "$name" "$said" $((SECONDS - began)))"); note "$name: $said"
    return $rc
}

# phase NAME LOG FUNCTION [ARGUMENT...]: limited, with the seconds of the table and what the wanted ones behind it need
phase() {
    local name=$1 row later=0 cap= needs= least one most
    wanted "$name" || return 0
    for row in $PHASES; do
        IFS=: read -r one most least <<<"$row"
        if [ "$one" = "$name" ]; then cap=$most needs=$least; elif [ -n "$cap" ] && wanted "$one"; then later=$((later + least)); fi
    done
    [ -n "$cap" ] || return 0
    [ "$TOTAL" -gt 525 ] && cap=$((cap * TOTAL / 525))
    local limit=$(($(left) - later))
    [ $limit -gt "$cap" ] && limit=$cap
    if [ $limit -lt "$needs" ]; then skip "$name" "$(left) s left"; return 0; fi
    limited "$name" "$limit" "${@:2}"
}

# ---- what is here
NVCC=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
CARD=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
ARCH=${ARCH:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)}; ARCH=${ARCH:-90}
# for prebuilt programs; those that are built here have the paths in them
CUBLAS=$("$PYTHON" -c 'import nvidia; print(":".join(nvidia.__path__))' 2>/dev/null | tr : '\n' | sed 's|$|/*/lib|')
for folder in /usr/local/cuda/lib64 $CUBLAS; do LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder; done
export LD_LIBRARY_PATH=$BIN:$LD_LIBRARY_PATH
PATH=$PATH:$(dirname "$NVCC"):/usr/local/cuda/bin
export DIR WORK OUT JOBS SHM TREE BUILD BIN ARCH PYTHON NVCC
{
    date; uname -a; nproc; free -g | head -2; df -h /tmp /dev/shm | tail -2; nvidia-smi; "$NVCC" --version | tail -2
    cmake --version | head -1; ninja --version; c++ --version | head -1; command -v compute-sanitizer ncu cuobjdump
    echo "architecture $ARCH"; ls -la "$DIR"
} >"$OUT/facts.txt" 2>&1
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem --format=csv,noheader 2>&1 | head -1

# ---- build: ggml with CUDA, the bench of products, test-backend-ops (its own target would build all of llama.cpp first)
configure() {
    rm -rf "$TREE" && tar xzf "$DIR/bof4.tar.gz" -C "$WORK" || return 1
    local generator=(); command -v ninja >/dev/null && generator=(-G Ninja)
    cd "$TREE" && cmake -DBOF4_PYTHON="$PYTHON" -C cuda-toolchain.cmake -B build-cuda "${generator[@]}" \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF -DGGML_CUDA=ON -DGGML_CUDA_FA=OFF -DGGML_CUDA_FA_QUANTS=f16-f16 \
        -DGGML_CUDA_NCCL=OFF -DCMAKE_CUDA_ARCHITECTURES="$ARCH-real"
}
compile() {
    cd "$TREE" || return 1
    c++ -std=c++17 -O2 -w -DGGML_SHARED -DGGML_BACKEND_SHARED -Iggml/include -Iggml/src -c tests/test-backend-ops.cpp -o "$WORK/tbo.o" &
    local first=$!
    cmake --build build-cuda -j "$JOBS" --target ggml ggml-cuda bof4-bench-cuda || { kill $first 2>/dev/null; return 1; }
    wait $first && c++ "$WORK/tbo.o" -o build-cuda/bin/test-backend-ops -Lbuild-cuda/bin -lggml -lggml-base -lpthread -Wl,-rpath,'$ORIGIN'
}
compile_llama() {
    cd "$TREE" && nice -n 19 cmake --build build-cuda -j "$JOBS" --target llama-bench llama-perplexity bof4
}
export -f configure compile compile_llama plain

stamp=$(cat "$DIR/bof4.tar.gz" "$DIR/prebuilt.tar.gz" 2>/dev/null | sha256sum | cut -d' ' -f1)
# runs PROGRAM [OPTION]: it is here, finds its libraries and, with the option, ends with 0
runs() { [ -x "$BIN/$1" ] && ! ldd "$BIN/$1" 2>&1 | grep -q "not found" && { [ $# -lt 2 ] || "$BIN/$1" "$2" >/dev/null 2>&1; }; }
built() { [ "$(cat "$WORK/stamp" 2>/dev/null)" = "$stamp" ] && runs bof4-bench-cuda --help && runs test-backend-ops; }
if [ -f "$DIR/prebuilt.tar.gz" ] && ! built; then
    rm -rf "$TREE"; mkdir -p "$BIN"
    tar xzf "$DIR/prebuilt.tar.gz" -C "$BIN" && echo "$stamp" >"$WORK/stamp"
    if built; then note "prebuilt programs"; else note "the prebuilt programs do not run here"; fi
fi
if built; then
    note "built already"
elif [ ! -f "$DIR/bof4.tar.gz" ]; then
    RESULTS+=("build      there is no $DIR/bof4.tar.gz to build"); FAILED=$((FAILED + 1)); rm -f "$WORK/stamp"
else
    rm -f "$WORK/stamp"
    limited configure 60 build.log configure &&
        limited build $(($(left) * 65 / 100)) build.log compile && echo "$stamp" >"$WORK/stamp"
fi
llama_build=
if built && [ -f "$TREE/CMakeLists.txt" ] && { wanted models || wanted llama || wanted gptq || wanted amx; }; then
    if ! runs llama-perplexity || ! runs llama-bench || [ ! -f "$BIN/libbof4.so" ]; then
        # the programs that run models compile beside the next phase, whose own work is on the GPU
        timeout -k 5 $(($(left) > 150 ? $(left) - 100 : 50)) bash -c compile_llama >>"$OUT/build.log" 2>&1 & llama_build=$!
    fi
fi

# ---- the phases
ops() {
    "$BIN/test-backend-ops" test -b CUDA0 -p bof4_ >"$WORK/ops.txt" 2>&1; local rc=$?
    plain "$WORK/ops.txt"
    return $rc
}
# the shape of upstream's perf mode, whose figures others have published
perf() {
    "$BIN/test-backend-ops" perf -b CUDA0 -o MUL_MAT \
        -p 'type_a=(bof4_s|bof4_k|q4_0|iq4_nl|iq4_xs|q4_K),type_b=f32,m=4096,n=(1|8|512),k=14336' 2>&1 | plain
    return "${PIPESTATUS[0]}"
}
bench() { "$BIN/bof4-bench-cuda" --shapes 8b,70b,moe --columns 1,2,3,4,6,8,16,32,64,512 --rounds 5 --csv "$OUT/bench.csv"; }
# our kernels, and upstream's tiled product with our tiles, whose names have the numbers of the types
sanitize() {
    compute-sanitizer --tool "$1" --error-exitcode 9 --kernel-name kernel_substring=bof4 \
        --kernel-name kernel_substring=ggml_type176 --kernel-name kernel_substring=ggml_type177 \
        "$BIN/test-backend-ops" test -b CUDA0 -p "$small" 2>&1 | plain
    return "${PIPESTATUS[0]}"
}
small='bof4_.*(m=16,n=(1|3|8|9),k=256,bs=\[1,1\],nr=\[1,1\],per=\[0,1,2,3\]|m=16,n=1,k=64,|n=256,m=5,r=4,be1=1'
small+='|n_mats=4,n_used=2,b=0,m=512,n=(1|17),|m=64,n=16,k=192|glu_op=2,m=1,n=32,k=256,use_id=.,n_mats=16,n_used=8,b=0,'
small+='with_bias=1,with_gate=1)'
# predict MODEL: keep the predictions of the processor
predict() {
    rm -f "$WORK/base.dat"
    "$BIN/llama-perplexity" -m "$1" -f "$DIR/text.txt" -c 128 -b 128 --chunks 4 -ngl 0 --device none \
        --kl-divergence-base "$WORK/base.dat" 2>&1 | tail -3
}
# diverge MODEL LABEL [ARGUMENT...]: predictions with the arguments against those kept; fails from a median of 0.01 on
diverge() {
    local model=$1 label=$2 rc=0 kld
    shift 2
    "$BIN/llama-perplexity" -m "$model" -c 128 -b 128 --chunks 4 "$@" \
        --kl-divergence-base "$WORK/base.dat" --kl-divergence >"$WORK/kld.txt" 2>&1 ||
        { tail -30 "$WORK/kld.txt"; rc=1; }
    kld=$(sed -n 's/^Median *KLD: *\([-0-9.e]*\).*/\1/p' "$WORK/kld.txt")
    echo "KLD $(basename "$model") $label: median ${kld:-none}, $(grep -E '^Mean +KLD' "$WORK/kld.txt"), $(grep 'Same top p:' "$WORK/kld.txt" | tail -1)"
    awk -v k="${kld:-9}" 'BEGIN { exit !(k < 0.01) }' || rc=1
    return $rc
}
# speed LABEL FILE [ARGUMENT...]: llama-bench of a model
speed() {
    local label=$1 file=$2
    shift 2
    "$BIN/llama-bench" -m "$file" "$@" -r 3 -o csv >"$WORK/one.csv" 2>"$WORK/one.err" &&
        "$PYTHON" "$DIR/summary.py" llama "$label" "$WORK/one.csv" || { tail -5 "$WORK/one.err"; return 1; }
}
# agree PREFIX [ARGUMENT...]: predictions of all models on the GPU against the processor's; PREFIX is for the labels.
agree() {
    local prefix=$1 failed=0 model arguments
    shift
    for model in "$DIR"/*-s.gguf; do
        predict "$model"
        for arguments in "-ngl 99" "-ngl 3" "-ngl 99 -ub 8" "-ngl 99 -ub 1"; do
            # shellcheck disable=SC2086
            diverge "$model" "$prefix$arguments" "$@" $arguments || failed=1
        done
    done
    return $failed
}
# random_llama LABEL TYPE LAYERS [ARGUMENT...]: llama-bench of a llama of random blocks
random_llama() {
    local label=$1 of=$2 layers=$3 file=$SHM/bof4-random.gguf rc=0
    shift 3
    "$PYTHON" "$DIR/make_llama.py" "$of" "$file" layers="$layers" && speed "$label" "$file" "$@" || rc=1
    rm -f "$file"
    return $rc
}
# KL divergence of the GPU's predictions from the CPU's: rounding of activations makes it 0.002, lost outliers 0.1 and
# more. With -ub 1 and -ub 8 the products of one and of several columns are compared, lists in fused products included.
models() { agree ""; }
# Python with the package: where it is not installed, with the carried one and wheels of what it needs.
with_package() {
    local path=${PYTHONPATH:-}
    if ! "$PYTHON" -c 'import gguf_bof4' 2>/dev/null; then
        path=$DIR/package:$WORK/site
        if [ ! -d "$WORK/site" ]; then # whole or not at all: a phase may be stopped here
            "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$WORK/site.new" \
                "$DIR"/wheels/*.whl && mv "$WORK/site.new" "$WORK/site" || return 1
        fi
    fi
    touch "$BIN/../CMakeCache.txt" # by which the package knows a build; prebuilt programs come without it
    PYTHONPATH=$path BOF4_BIN=$BIN "$PYTHON" "$@"
}
gptq() {
    with_package "$DIR/gptq.py" --model "$DIR/small-s.gguf" --calibration "$DIR/calibration.txt" --text "$DIR/text.txt" \
        --bin "$BIN" --work "$WORK/gptq"
}
llama() {
    local of rc=0
    for of in bof4_s iq4_nl bof4_k q4_k bof4_s+opq q4_0 bof4_k+opq iq4_xs mxfp4; do
        random_llama "$of" "$of" 32 -ngl 99 -fa 0 -p 512 -n 128 || rc=1
    done
    return $rc
}
# Single products with AMX and without, on one core and on all.
kernels() {
    local on threads -
    set -o pipefail
    "$PYTHON" -c 'import numpy, rich, typer' || { echo "KERNELS not measured: $PYTHON lacks a module"; return 0; }
    for threads in 1 "$(nproc)"; do
        for on in 1 0; do
            BOF4_AMX=$on with_package -c 'from gguf_bof4.cli import main; main()' bench kernels \
                --types BOF4_S,BOF4_K,Q4_0 --rows 4096 --length 4096 --columns 64,512 --rounds 1 --threads "$threads" |
                sed "s/^/KERNELS BOF4_AMX=$on /" || return 1
        done
    done
}
# Prompts on the processor: products, predictions with AMX against those without, and speed beside types with AMX kernels
# upstream, on all cores, of a quarter of the layers.
amx() {
    local failed=0 model file=$SHM/bof4-random.gguf of arguments
    kernels || failed=1
    for model in "$DIR"/*-s.gguf; do
        BOF4_AMX=0 predict "$model"
        diverge "$model" "with AMX" -ngl 0 --device none || failed=1
    done
    arguments=(-dev none -ngl 0 -t "$(nproc)" -p 256 -n 16)
    for of in bof4_s bof4_k q4_0 q4_k iq4_xs; do
        "$PYTHON" "$DIR/make_llama.py" "$of" "$file" layers=8 && speed "cpu $of" "$file" "${arguments[@]}" || failed=1
        case $of in bof4*) BOF4_AMX=0 speed "cpu $of BOF4_AMX=0" "$file" "${arguments[@]}" || failed=1 ;; esac
        rm -f "$file"
    done
    return $failed
}
# Without flash attention, whose shaders a build may lack.
vulkan() {
    local failed=0 of BIN=$WORK/vulkan
    mkdir -p "$BIN" && tar xzf "$DIR/vulkan.tar.gz" -C "$BIN" || return 1
    export LD_LIBRARY_PATH=$BIN:$LD_LIBRARY_PATH
    "$BIN/test-backend-ops" test -b Vulkan0 -p bof4_ >"$WORK/vulkan.txt" 2>&1 || failed=1
    plain "$WORK/vulkan.txt" | grep -E "^ggml_vulkan: 0|tests passed|ERR =" | sed "s/^/VULKAN /"
    # no device is no success
    grep -q "^ggml_vulkan: 0" "$WORK/vulkan.txt" || { echo "VULKAN: no device"; return 1; }
    agree "Vulkan " -fa off || failed=1
    for of in bof4_s iq4_nl bof4_k q4_k bof4_s+opq q4_0; do
        random_llama "vulkan $of" "$of" 16 -ngl 99 -fa 0 -p 512 -n 64 || failed=1
    done
    return $failed
}
counters() {
    local metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed of
    metrics+=,sm__inst_issued.avg.pct_of_peak_sustained_active,l1tex__throughput.avg.pct_of_peak_sustained_active
    metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,smsp__issue_active.avg.pct_of_peak_sustained_active
    for of in bof4_s bof4_k bof4_s+opq; do
        # the first products are those of the comparison with the CPU, of 256 rows and of mixtures
        GGML_CUDA_DISABLE_GRAPHS=1 ncu --clock-control none -k regex:bof4_mul_mat_vec -s 12 -c 2 --metrics "$metrics" \
            "$BIN/bof4-bench-cuda" --types "$of" --shapes 70b --columns 1 --rounds 1 2>&1 |
            grep -E "bof4_mul|dram__|sm__|smsp__|l1tex|gpu__" || return 1
    done
}
export -f ops perf bench sanitize predict diverge agree speed random_llama models with_package gptq llama kernels amx counters vulkan
export small

if built; then
    phase ops ops.log ops
    if [ -n "$llama_build" ]; then
        note "waiting for the programs that run models"
        wait $llama_build || { RESULTS+=("build      of llama-bench, llama-perplexity and libbof4 FAILED: build.log"); FAILED=$((FAILED + 1)); }
    fi
    phase bench bench.log bench
    if ! runs llama-perplexity || ! ls "$DIR"/*-s.gguf "$DIR/text.txt" >/dev/null 2>&1; then
        skip models "no models, or no llama-perplexity"; skip gptq "no models, or no llama-perplexity"
    else
        phase models models.log models
        if ! "$PYTHON" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
            skip gptq "$PYTHON has no torch that uses the GPU"
        elif [ ! -f "$DIR/gptq.py" ] || [ ! -f "$BIN/libbof4.so" ]; then
            skip gptq "no gptq.py, or no libbof4"
        else
            phase gptq models.log gptq
        fi
    fi
    if command -v compute-sanitizer >/dev/null; then
        phase memcheck sanitizer.log sanitize memcheck
        phase racecheck sanitizer.log sanitize racecheck
    else
        skip memcheck "no compute-sanitizer"; skip racecheck "no compute-sanitizer"
    fi
    if [ -f "$DIR/make_llama.py" ] && runs llama-bench; then
        phase llama models.log llama
    else
        skip llama "no make_llama.py, or no llama-bench"
    fi
    phase perf bench.log perf
    if command -v ncu >/dev/null && [ -z "${NO_NCU:-}" ]; then phase counters bench.log counters; else skip counters "no ncu"; fi
    if [ -f "$DIR/vulkan.tar.gz" ]; then phase vulkan models.log vulkan; else skip vulkan "no vulkan.tar.gz"; fi
    if ! grep -q amx_int8 "${CPUINFO:-/proc/cpuinfo}"; then
        skip amx "this processor has no AMX"
    elif ! runs llama-perplexity || ! runs llama-bench || [ ! -f "$DIR/make_llama.py" ]; then
        skip amx "no make_llama.py, or no llama-perplexity or llama-bench"
    else
        phase amx models.log amx
    fi
else
    echo "---- the end of the build's log:"; tail -n 40 "$OUT/build.log" 2>/dev/null
fi

# ---- the summary, last
{
    echo "==== $(date -u +%FT%TZ), $SECONDS s of $TOTAL"
    echo "card: ${CARD:-unknown}"
    printf '%s\n' "${RESULTS[@]}"
    if [ -f "$OUT/ops.log" ]; then
        echo "---- operations: $(grep -E 'tests passed' "$OUT/ops.log" | tail -1)"
        grep -oE '^ *[A-Z_]+\(.*(bof4_[sk]).*\): (OK|FAIL|not supported)' "$OUT/ops.log" |
            sed -E 's/^ *([A-Z_]+)\(.*(bof4_[sk]).*\): (.*)$/\1 \2 \3/' | sort | uniq -c |
            awk '{printf "%s %s %s: %s; ", $2, $3, $4 (NF > 4 ? " " $5 : ""), $1} END {print ""}'
        grep -nE 'FAIL|ERR = |CUDA error|abort' "$OUT/ops.log" | head -12
    fi
    if [ -f "$OUT/bench.log" ]; then
        echo "---- products"
        grep -E '^(NVIDIA|memory)|^  (bof4_[sk]|q4_0|iq4_nl|q4_k|mxfp4|iq4_xs).*columns|WRONG|not supported' "$OUT/bench.log" | cut -c1-170 | head -14
    fi
    [ -f "$OUT/bench.csv" ] && "$PYTHON" "$DIR/summary.py" products "$OUT/bench.csv"
    if [ -f "$OUT/sanitizer.log" ]; then
        echo "---- sanitizer"
        grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|hazards displayed|Invalid|Race reported|Error:|tests passed' "$OUT/sanitizer.log" | sort | uniq -c | head -12
    fi
    if [ -f "$OUT/models.log" ]; then echo "---- models"; grep -E '^KLD|^GPTQ|^LLAMA-8B|^KERNELS|^VULKAN|Error' "$OUT/models.log"; fi
    if [ -f "$OUT/bench.log" ]; then
        grep -E 'MUL_MAT\(.*us/run' "$OUT/bench.log" | sed -E 's/type_b=f32,|,bs=.*\): /) /g' | cut -c1-120
        grep -E 'bof4_mul|dram__|issue_active|warps_active|l1tex|gpu__time' "$OUT/bench.log" | sed -E 's/ +/ /g' | cut -c1-110 | head -40
    fi
    if [ $FAILED -eq 0 ]; then echo "ALL OK"; else echo "FAILED: $FAILED"; fi
} 2>&1 | tee "$OUT/summary.txt"
[ $FAILED -eq 0 ]
