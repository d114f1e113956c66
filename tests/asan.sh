#!/usr/bin/env bash
# The tests of the CPU kernels with every access to memory checked: bash tests/asan.sh [python] [pytest options]
# The kernels are built anew, with AddressSanitizer, in a copy of the sources; nothing of the installation changes.
set -euo pipefail
python=$(realpath -s "$(command -v "${1:-python}")")
shift || true
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r src setup.py pyproject.toml README.md LICENSE "$copy"
rm -f "$copy"/src/focalnet/kernels/cpu/_kernels*
(cd "$copy" && CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -g" "$python" setup.py -q build_ext --inplace)

# Python and PyTorch keep memory until they end, which is no leak of ours; the tests catch MemoryError themselves.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:abort_on_error=1
export LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
export PYTHONPATH="$copy/src"
"$python" -c "import focalnet; from focalnet.kernels import cpu; print(cpu.load().variant, focalnet.__file__)"
"$python" -m pytest tests/kernels/test_native.py tests/kernels/test_native_safety.py tests/kernels/test_rowwise.py \
  tests/kernels/test_deformable.py "$@"
