"""Builds the CPU kernels where a C++ compiler is found; where none is, the package installs without them.

Everything else about the package is in pyproject.toml. Each source of kernels is compiled once for each instruction
set; the library links no OpenMP of its own, since it runs on the threads PyTorch has loaded. It has a C interface and
does not use Python's, so that one wheel serves every version of Python on a platform.

``FOCALNET_KERNELS=required`` makes it an error if the kernels cannot be built, as for wheels that are published.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/focalnet/kernels/cpu")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fvisibility=hidden", "-Wno-ignored-attributes", "-Xpreprocessor", "-fopenmp"]  # Apple's clang wants both
FLAGS += os.environ.get("CXXFLAGS", "").split()
SEAL = b"focalnet kernels"  # after a library's content and its SHA-256, for focalnet/kernels/cpu/library_file.py
MACHINE = platform.machine().lower()
X86, ARM = MACHINE in ("x86_64", "amd64"), MACHINE in ("aarch64", "arm64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"]
KERNELS = ("focal_context", "rows", "deformable")
VARIANTS: dict[str, tuple[int, list[str]]] = {"neon" if ARM else "generic": (4, [])}  # lanes, flags
if X86:
    VARIANTS |= {"avx2": (8, ["-mavx2", "-mfma"]), "avx512": (16, AVX512)}
    VARIANTS["avx512bf16"] = (16, [*AVX512, "-mavx512bf16"])


class BuildKernels(build_ext):
    """One object for each instruction set, linked into one library."""

    def build_extension(self, extension: Extension) -> None:
        library = Path(self.get_ext_fullpath(extension.name))
        try:
            self._build(library)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("FOCALNET_KERNELS") == "required":
                raise
            print(f"focalnet: installed without CPU kernels, models run eagerly ({error})", file=sys.stderr)

    def _build(self, library: Path) -> None:
        compiler = os.environ.get("CXX", "c++")
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)

        def compile(source: str, target: Path, *flags: str) -> Path:
            subprocess.run([compiler, *FLAGS, *flags, "-c", NATIVE / f"{source}.cpp", "-o", target], check=True)
            return target

        objects = [compile("dispatch", folder / "dispatch.o", *["-DFOCALNET_X86"] * X86, *["-DFOCALNET_ARM"] * ARM)]
        for name, (lanes, flags) in VARIANTS.items():
            variant = [*flags, f"-DVLEN={lanes}", f"-DVARIANT(kernels)=kernels##_{name}"]
            objects += [compile(kernels, folder / f"{kernels}_{name}.o", *variant) for kernels in KERNELS]
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        subprocess.run([compiler, "-shared", *undefined, *objects, "-o", library], check=True)
        if sys.platform == "linux":  # elsewhere what follows a library's end breaks its signature
            content = library.read_bytes()
            library.write_bytes(content + hashlib.sha256(content).digest() + SEAL)


class PlatformWheel(bdist_wheel):
    """A wheel for a platform, and for every version of Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("focalnet.kernels.cpu._kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
