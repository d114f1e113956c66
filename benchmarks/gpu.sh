#!/usr/bin/env bash
# Everything there is to measure on a GPU, from a bare clone, in ten minutes:
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

# Compilers are slow and use one core a model; three at once while the tests run. Nothing is timed meanwhile.
for kernels in srf lrf 9-11-13; do
  timeout --kill-after=5 200 "$PYTHON" benchmarks/gpu/models.py --warm --kernels "$kernels" >"$OUT/warm-$kernels.log" 2>&1 &
done
step doctor 30 "$PYTHON" -c "from focalnet.ops import backend; print(backend.available())"
step tests 170 "$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels/test_triton.py
wait

step kernels 70 "$PYTHON" benchmarks/gpu/kernels.py
for kernels in srf lrf 9-11-13; do
  step "models-$kernels" 75 "$PYTHON" benchmarks/gpu/models.py --kernels "$kernels"
done
if [ -d "${FOCALNET_SHARED:-}/data/cifar10" ]; then
  step training 70 "$PYTHON" benchmarks/gpu/training.py --data "$FOCALNET_SHARED/data/cifar10"
else
  echo "== training: no FOCALNET_SHARED with data/cifar10"
fi

cp benchmarks/results/gpu_*.json "$OUT" 2>/dev/null
echo "logs and results: $OUT, after $SECONDS s"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
