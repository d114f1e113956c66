#!/usr/bin/env bash
# Everything there is to measure on a GPU, from a bare clone: first figures in two minutes, all within ten, then the tests:
#
#     bash benchmarks/gpu.sh [--dry-run]
#
# Needs PyTorch, Triton, timm and transformers for this Python (PYTHON=...), pytest for the tests, and for training the
# packages of focalnet[train] and FOCALNET_SHARED, a folder with data/cifar10. No step needs the network, and nothing is
# installed. Each step has a limit, and all figures have BUDGET seconds (600) together: a step for which too little is
# left is skipped with a line. One that fails or outlasts its limit loses only what it has not yet written to
# benchmarks/results/gpu_*.json. The tests have TEST_SECONDS (600) more. OUT=folder keeps the logs and a copy of the results.
# --dry-run prints each step, when it starts at the latest, and its limit.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-600}
OUT=${OUT:-$(mktemp -d)}
DRY=${1:+yes}
if [ "${1:---dry-run}" != --dry-run ]; then
  echo "usage: bash benchmarks/gpu.sh [--dry-run]" >&2
  exit 2
fi
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET

failed=()
planned=0 # seconds, if every step so far took all of its limit
step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS code=0 left=$((BUDGET - SECONDS))
  shift 2
  if [ -n "$DRY" ]; then
    echo "$name: starts within $planned s, at most $limit s: $*"
    planned=$((planned + limit))
    return
  fi
  if [ "$left" -lt 1 ] || [ $((10 * left)) -lt "$limit" ]; then
    echo "== $name: skipped, $((left > 0 ? left : 0)) s of $BUDGET s are left and it may take $limit s"
    failed+=("$name: skipped")
    return
  fi
  limit=$((left < limit ? left : limit))
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1 || code=$?
  tail -n 40 "$OUT/$name.log"
  if [ "$code" -ne 0 ]; then
    failed+=("$name: exit $code")
  fi
  echo "== $name: exit $code after $((SECONDS - start)) s"
}

warm() { # PyTorch's compiler, one core a model; nothing is timed meanwhile
  for kernels in srf lrf 9-11-13; do
    "$PYTHON" benchmarks/gpu/models.py --warm --kernels "$kernels" >"$OUT/warm-$kernels.log" 2>&1 &
  done
  wait
}
export -f warm
export PYTHON OUT

# The check of the kernels comes first: where they cannot run, the models are timed on PyTorch's operations, and say so.
step doctor 30 "$PYTHON" -W ignore -c "from focalnet.kernels import backend; print(backend.available())"

# First figures: kernels compiled in parallel without touching the GPU, which later steps find in Triton's cache.
CAPABILITY=90
if [ -z "$DRY" ]; then
  found=$(timeout 10 "$PYTHON" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())" 2>/dev/null) && CAPABILITY=$found
fi
step precompile-srf 35 "$PYTHON" benchmarks/gpu/compile_only.py --models srf --capability "$CAPABILITY"
step kernels-srf 45 "$PYTHON" benchmarks/gpu/kernels.py --kernels srf

# The models, then a training run, then the other kernels alone.
step precompile 60 "$PYTHON" benchmarks/gpu/compile_only.py --models lrf 9-11-13 --capability "$CAPABILITY"
step warm 130 bash -c warm
for kernels in srf lrf 9-11-13; do
  step "models-$kernels" 50 "$PYTHON" benchmarks/gpu/models.py --kernels "$kernels"
done
if [ -d "${FOCALNET_SHARED:-}/data/cifar10" ]; then
  step training 60 "$PYTHON" benchmarks/gpu/training.py --data "$FOCALNET_SHARED/data/cifar10"
else
  echo "== training: no FOCALNET_SHARED with data/cifar10"
fi
for kernels in lrf 9-11-13; do
  step "kernels-$kernels" 40 "$PYTHON" benchmarks/gpu/kernels.py --kernels "$kernels"
done

# Last, for it compiles a thousand kernels: what it has not reached when its time is over was not tested.
BUDGET=$((SECONDS + ${TEST_SECONDS:-600}))
step tests "${TEST_SECONDS:-600}" "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels/test_triton.py tests/kernels/test_triton_forms.py

[ -n "$DRY" ] && exit 0
cp benchmarks/results/gpu_*.json "$OUT" 2>/dev/null
echo "logs and results: $OUT, after $SECONDS s"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
