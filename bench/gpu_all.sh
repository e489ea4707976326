#!/usr/bin/env bash
# Everything that a borrowed GPU is wanted for, in one command of under ten minutes:
#   bench/gpu_all.sh [--built] [FOLDER]
# builds xpkern in place, runs the GPU benchmarks, the tests that need a GPU, the sanitizers and Nsight Compute, what matters
# most first, and leaves logs and JSON in FOLDER (default: bench/results/local/gpu); what is cut off leaves what it had. Rates
# are set beside those that the checkout holds. With --built the extension modules are those that stand in the checkout
# already: building them takes longer than anything that is measured. Works in a plain checkout without network: Python
# with numpy, scipy, scikit-learn, h5py, pybind11, pytest, CuPy, and nvcc. Exit code 1 if anything failed, or there is no GPU.
#
# XPKERN_TEST_DATA names a folder of test vectors; tests that want them fail where one is missing.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=$PWD/.venv/bin/python
built=
[ "${1:-}" = --built ] && built=1 && shift
folder=$(realpath -m "${1:-bench/results/local/gpu}")
mkdir -p "$folder"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$folder/cupy_cache}
BUDGET=580 # seconds of all steps together
rm -f "$folder/failed"
load='import sys; from xpkern.engine.cuda.device import open_device; open_device().load(general=sys.argv[1] == "general")'

step() { # step NAME SECONDS COMMAND...: its output in NAME.log; a failure is remembered, and the next step runs
    local name=$1 limit=$2 start=$SECONDS left=$((BUDGET - SECONDS)) code=0
    shift 2
    if [ $left -lt 5 ]; then
        code="no time left"
    else
        timeout --kill-after=10 $((limit < left ? limit : left)) "$@" >"$folder/$name.log" 2>&1 || code=$?
    fi
    [ "$code" = 0 ] && echo "$name: $((SECONDS - start)) s, ok" && return 0
    echo "$name: $((SECONDS - start)) s, FAILED ($code): $folder/$name.log"
    echo "$name" >>"$folder/failed"
    tail -n 12 "$folder/$name.log" 2>/dev/null | sed 's/^/    /'
    return 1
}

tool() { # tool NAME: where it is, on PATH or beside nvcc
    command -v "$1" || ls "$(dirname "$(readlink -f "$(command -v nvcc || echo /nowhere)")")/$1" 2>/dev/null
}

no_gpu() { # no_gpu WHY: nothing to do here
    echo "gpu_all: there is no GPU to run on: $(echo "$1" | tail -n 1)" >&2
    exit 1
}

why=$("$python" -c 'from xpkern.engine.cuda.device import gpu_names; print(*gpu_names())' 2>&1) || no_gpu "$why"
echo "$why"
# the compiled CPU engine, without which nothing can be compared; beside it NVRTC compiles what CuPy will launch
if "$python" -c 'import cupy' 2>/dev/null; then
    step general 300 "$python" -c "$load" general &
    general=$!
    step kernels 300 "$python" -c "$load" usual &
    kernels=$!
fi
export XPKERN_CUDA_ARCH=native # the extension module, for this GPU alone, beside what runs through CuPy
command -v nvcc >/dev/null && export XPKERN_CUDA=1
[ -n "$built" ] || step build 300 "$python" setup.py build_ext --inplace ||
    { echo "gpu_all: xpkern cannot be built here"; exit 1; }
wait ${kernels:-}
"$python" -m xpkern doctor | tee "$folder/doctor.log"
why=$("$python" -c 'from xpkern.engine.cuda.device import open_device; open_device()' 2>&1) || no_gpu "$why"

step bench 150 "$python" -m bench gpu --output "$folder"
sed -n '/times as fast:$/,$p' "$folder/bench.log"
step code 30 "$python" -m bench code --output "$folder"
step paper 120 "$python" -m bench gpu --paper --output "$folder"
cat "$folder/paper.log"
wait ${general:-}
# only the files that need nothing else than what is listed above
step tests 200 "$python" -m pytest -q -m gpu -p no:cacheprovider -W default tests/test_engine_*.py tests/test_gpu.py \
    tests/test_learned_noise.py tests/test_second_pass.py tests/test_type_prior.py
if sanitizer=$(tool compute-sanitizer); then
    for which in memcheck racecheck initcheck; do
        step "$which" 90 "$sanitizer" --tool "$which" --error-exitcode 9 "$python" -m bench gpu --only-run
    done
else
    echo "no compute-sanitizer here" | tee -a "$folder/failed"
fi
if profiler=$(tool ncu); then # the heaviest of the fit, of the calibration, of the training
    step ncu 120 "$profiler" --force-overwrite --set full --clock-control none --launch-count 12 \
        --kernel-name 'regex:^(fit_start|fit_search|fit_finish|freeze_noise|calibrate|train_stars)$' \
        --export "$folder/ncu" "$python" -m bench gpu --only-run --stars 16384 &&
        "$profiler" --import "$folder/ncu.ncu-rep" --page details >"$folder/ncu.txt"
else
    echo "no ncu here: nothing was profiled"
fi
[ -e xpkern/engine/cuda/kernels.fatbin ] && step by_extension 60 env XPKERN_CUDA_DOOR=extension "$python" -m bench gpu --only-run

printf 'in all %d s\n' $SECONDS
if [ -s "$folder/failed" ]; then
    echo "gpu_all: failed: $(paste -sd' ' "$folder/failed")" >&2
    exit 1
fi
