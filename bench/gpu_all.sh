#!/usr/bin/env bash
# Everything that a borrowed GPU is wanted for, in one command of under ten minutes:
#   bench/gpu_all.sh [FOLDER]
# builds xpkern in place, runs the tests that need a GPU, the sanitizers, the GPU benchmarks and Nsight Compute, and leaves
# logs and JSON in FOLDER (default: bench/results/local/gpu). Works in a plain checkout without network: Python with numpy,
# scipy, scikit-learn, h5py, pybind11, pytest, CuPy, and nvcc. Exit code 1 if anything failed, or there is no GPU.
#
# XPKERN_TEST_DATA names a folder of test vectors; tests that want them fail where one is missing.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=$PWD/.venv/bin/python
folder=$(realpath -m "${1:-bench/results/local/gpu}")
mkdir -p "$folder"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$folder/cupy_cache}
failed=()

step() { # step NAME SECONDS COMMAND...: its output in NAME.log; a failure is remembered, and the next step runs
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1 || code=$?
    printf '%-12s %4d s  %s\n' "$name" $((SECONDS - start)) "$([ $code = 0 ] && echo ok || echo "FAILED ($code): $folder/$name.log")"
    if [ $code != 0 ]; then
        failed+=("$name")
        tail -n 12 "$folder/$name.log" | sed 's/^/    /'
    fi
    return $code
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
# the compiled CPU engine first: without it nothing can be compared
step build 240 "$python" setup.py build_ext --inplace || { echo "gpu_all: xpkern cannot be built here"; exit 1; }
"$python" -m xpkern doctor | tee "$folder/doctor.log"
why=$("$python" -c 'from xpkern.engine.cuda.device import open_device; open_device()' 2>&1) || no_gpu "$why"

if command -v nvcc >/dev/null; then # the extension module, for this GPU alone, beside what runs through CuPy
    XPKERN_CUDA=1 XPKERN_CUDA_ARCH=native step extension 300 "$python" setup.py build_ext --inplace &
    extension=$!
fi
# only the files that need nothing else than what is listed above
step tests 240 "$python" -m pytest -q -m gpu -p no:cacheprovider -W default tests/test_engine_*.py tests/test_cuda_*.py tests/test_gpu.py
step bench 180 "$python" -m bench gpu --output "$folder"
if [ -n "${extension:-}" ]; then
    wait "$extension" || failed+=(extension)
    step by_extension 60 env XPKERN_CUDA_DOOR=extension "$python" -m bench gpu --only-run
fi
if sanitizer=$(tool compute-sanitizer); then
    for which in memcheck racecheck initcheck; do
        step "$which" 120 "$sanitizer" --tool "$which" --error-exitcode 9 "$python" -m bench gpu --only-run
    done
else
    echo "no compute-sanitizer here"
    failed+=(compute-sanitizer)
fi
if profiler=$(tool ncu); then # the three heaviest: of the fit, of the calibration, of the training
    step ncu 120 "$profiler" --force-overwrite --set full --kernel-name 'regex:^(fit_rough|calibrate|train_products)$' \
        --launch-count 6 --export "$folder/ncu" "$python" -m bench gpu --only-run
else
    echo "no ncu here: nothing was profiled"
fi

printf 'in all %d s\n' $SECONDS
[ ${#failed[@]} = 0 ] || { echo "gpu_all: failed: ${failed[*]}" >&2; exit 1; }
