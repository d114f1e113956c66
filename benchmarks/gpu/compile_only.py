"""Compiles every kernel for a GPU that need not be here, and shows what the compiler made of it.

    python benchmarks/gpu/compile_only.py [--kernels 3 5] [--map 56 56 96] [--batch 128] [--dtype bfloat16]
    python benchmarks/gpu/compile_only.py --forms rank-1 padded [--kernels ...]
    python benchmarks/gpu/compile_only.py --models [srf lrf 9-11-13] [--capability 90]
    python benchmarks/gpu/compile_only.py --deformable [--channels 32] [--dtype bfloat16]

The second compiles the kernels of the forms that are off by default (``kernels/triton/forms.py``); the third those of
every stage and kernel set of FocalNet-T in bfloat16 on all cores, in the usual form and in all others together, into
Triton's cache; the last those of deformable attention, of 8 heads and 2 levels (more levels are more of the same).

One line a kernel: registers of a thread, bytes of stack (anything but 0 means registers were spilled), bytes of shared
memory, instructions, and multiply-adds among them (loops are counted once). Needs Triton, which carries the assembler.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import multiprocessing
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from focalnet.kernels import modulator
from focalnet.kernels.triton import deformable, forms, op, rank_one, tiling

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}
SETS = {"srf": [3, 5], "lrf": [3, 5, 7], "9-11-13": [9, 11, 13]}  # FocalNet-T, and large kernels for detection
STAGES = ((56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768))
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)")
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def launches(
    size: tuple[int, int, int, int], kernels: list[int], dtype: torch.dtype, chosen: tuple[str, ...] = ()
) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Every launch of a forward and backward pass in these forms: kernel, arguments, constants; without running any."""
    recorded = []

    def record(kernel: Any, programs: int, tile: tiling.Tile, *arguments: Any, **constants: Any) -> None:
        constants |= {"TW": tile.TW, "R": tile.R, "BC": tile.BC, "num_warps": tile.warps}
        recorded.append((kernel, arguments, constants))

    def record_product(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        recorded.append((kernel, arguments, constants))

    B, H, W, C = size
    L, meta = len(kernels), torch.device("meta")
    spare = -(2 * C + L + 1) % modulator.ALIGNED if forms.PADDED in chosen else 0
    projection = torch.empty(B, H, W, 2 * C + L + 1 + spare, dtype=dtype, device=meta)
    query, context, gates, _ = projection.split((C, C, L + 1, spare), -1)
    taps = torch.empty(sum(k * k for k in kernels), C, device=meta)
    if forms.RANK_ONE in chosen:
        product, rank_one._launch = rank_one._launch, record_product
        try:
            out, v, gate = torch.empty(size, dtype=dtype, device=meta), taps.new_empty(B, C), gates[..., -1:]
            rank_one.product._init_fn(query, out, gate, v, True)
            rank_one.product_backward._init_fn(out, query, out, gate, v, True)
        finally:
            rank_one._launch = product
        gates = gates[..., :-1]
    launch, op._launch = op._launch, record
    try:
        out, z, totals = op.focal_context._init_fn(context, gates, taps, kernels, True, True)
        op.focal_context_backward._init_fn(out, None, context, gates, taps, kernels, z, totals, True)
    finally:
        op._launch = launch
    return recorded


def deformable_launches(channels: int, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The same of deformable attention with so many channels of a head."""
    recorded = []

    def record(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        recorded.append((kernel, arguments, constants))

    sizes, meta = [100, 167, 50, 84], torch.device("meta")
    cells = sum(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    values = torch.empty(2, cells, 8, channels, dtype=dtype, device=meta)
    locations, weights = (torch.empty(2, 900, 8, 2, 4, *xy, device=meta) for xy in ((2,), ()))
    launch, deformable._launch = deformable._launch, record
    try:
        out = deformable.deformable_attention._init_fn(values, sizes, locations, weights, True)
        deformable.deformable_attention_backward._init_fn(out, values, sizes, locations, weights, True)
    finally:
        deformable._launch = launch
    return recorded


def compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], capability: int) -> Any:
    """The kernel as the launch would compile it: pointers and integers that 16 divides are known to be so."""
    signature, attributes, values = {}, {}, dict(constants)
    warps = values.pop("num_warps")
    for index, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
        name = parameter.name
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            address = value.storage_offset() * value.element_size()
        elif parameter.do_not_specialize:
            signature[name] = "i32" if value < 2**31 else "i64"
            continue
        elif value == 1:
            signature[name], values[name] = "constexpr", 1
            continue
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            address = value
        if address % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(values, "constexpr")
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def resources(binary: bytes) -> dict[str, int]:
    """Registers, stack, shared memory, instructions and multiply-adds of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = re.findall(INSTRUCTION, _run("cuobjdump", "--dump-sass", file.name))
    counts = collections.Counter(name.split(".")[0] for name in code)
    found = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage))
    return {name.lower(): int(n) for name, n in found.items()} | {"instructions": len(code), "fma": counts["FFMA"]}


def _run(program: str, *arguments: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run([BINARIES / program, *arguments], capture_output=True, text=True, check=True).stdout
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def compile_models(batch: int, capability: int, sets: list[str]) -> None:
    """Every kernel of FocalNet-T at 224 pixels in bfloat16, one process a map and kernel set; says what failed."""
    work = [((batch, *stage), SETS[name], capability) for name in sets for stage in STAGES]
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for (size, kernels, _), done in zip(work, [pool.submit(compile_all, *case) for case in work], strict=True):
            print(*size, kernels, f"{done.result()} kernels", sep="  ", flush=True)


def compile_all(size: tuple[int, int, int, int], kernels: list[int], capability: int) -> int:
    """Compiles what a training step launches; returns how many kernels that were."""
    found = [launch for chosen in ((), forms.FORMS) for launch in launches(size, kernels, torch.bfloat16, chosen)]
    for launch in found:
        compiled(*launch, capability)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--map", type=int, nargs=3, default=[56, 56, 96], metavar=("H", "W", "C"))
    parser.add_argument("--batch", type=int, default=128)
    floats = [str(t).removeprefix("torch.") for t in TYPES if t.is_floating_point]
    parser.add_argument("--dtype", choices=floats, default="bfloat16")
    parser.add_argument("--capability", type=int, default=90, help="80 A100, 90 H100 and H200")
    parser.add_argument("--models", nargs="*", choices=list(SETS), help="FocalNet-T, in parallel")
    parser.add_argument("--forms", nargs="+", choices=forms.FORMS, default=[], help="forms that are off by default")
    parser.add_argument("--deformable", action="store_true", help="deformable attention")
    parser.add_argument("--channels", type=int, default=32, help="of a head of deformable attention")
    a = parser.parse_args()
    if a.models is not None:
        compile_models(a.batch, a.capability, a.models or list(SETS))
        return
    dtype = getattr(torch, a.dtype)
    if a.deformable:
        found = deformable_launches(a.channels, dtype)
    else:
        found = launches((a.batch, *a.map), a.kernels, dtype, tuple(a.forms))
    for kernel, arguments, constants in found:
        used = resources(compiled(kernel, arguments, constants, a.capability).asm["cubin"])
        line = ", ".join(f"{name} {value}" for name, value in used.items())
        print(f"{kernel.__name__:24s} {line}  {constants}")


if __name__ == "__main__":
    main()
