#!/usr/bin/env bash
# Everything there is to measure on a GPU, from a bare clone: figures within ten minutes, then the tests (TEST_SECONDS):
#
#     bash benchmarks/gpu.sh
#
# Needs PyTorch, Triton, timm and transformers for this Python (PYTHON=...), pytest for the tests, and for the last step
# the packages of focalnet[train] and FOCALNET_SHARED, a folder with data/cifar10. No step needs the network. A step that
# fails or outlasts its limit says so and loses only its own results; those of the others are in benchmarks/results/gpu_*.json.
# OUT=folder keeps the logs and a copy of the results.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

if "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation --editable . >"$OUT/install.log" 2>&1; then
  echo "installed"
else
  echo "not installed, running from the source folder: $(tail -n 1 "$OUT/install.log")"
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

failed=()
step() { # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1 || code=$?
  tail -n 40 "$OUT/$name.log"
  if [ "$code" -ne 0 ]; then
    failed+=("$name: exit $code")
  fi
  echo "== $name: exit $code after $((SECONDS - start)) s"
}

# The check of the kernels comes first: where they cannot run, the models below are timed on PyTorch's operations, and say so.
step doctor 60 "$PYTHON" -W ignore -c "from focalnet.kernels import backend; print(backend.available())"

# The kernels of the models' shapes, compiled in parallel without touching the GPU; later steps find them in Triton's cache.
CAPABILITY=$("$PYTHON" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())" 2>/dev/null) || CAPABILITY=90
step precompile 100 "$PYTHON" benchmarks/gpu/compile_only.py --models --capability "$CAPABILITY"

# First figures: the operation alone. Then PyTorch's compiler, one core a model and nothing timed meanwhile, and the models.
step kernels 70 "$PYTHON" benchmarks/gpu/kernels.py
for kernels in srf lrf 9-11-13; do
  timeout --kill-after=5 150 "$PYTHON" benchmarks/gpu/models.py --warm --kernels "$kernels" >"$OUT/warm-$kernels.log" 2>&1 &
done
wait
for kernels in srf lrf 9-11-13; do
  step "models-$kernels" 60 "$PYTHON" benchmarks/gpu/models.py --kernels "$kernels"
done
if [ -d "${FOCALNET_SHARED:-}/data/cifar10" ]; then
  step training 70 "$PYTHON" benchmarks/gpu/training.py --data "$FOCALNET_SHARED/data/cifar10"
else
  echo "== training: no FOCALNET_SHARED with data/cifar10"
fi

# Last, for it compiles a thousand kernels: what it has not reached when its time is over was not tested.
step tests "${TEST_SECONDS:-600}" "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels/test_triton.py

cp benchmarks/results/gpu_*.json "$OUT" 2>/dev/null
echo "logs and results: $OUT, after $SECONDS s"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
