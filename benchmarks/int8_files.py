"""CPU time of an exported file in float32 and of the same in int8, in turns in one process, with one thread.

python benchmarks/int8_files.py nano.xml nano_int8.xml --sizes 1x32 8x32 64x32 --out speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from focalnet.runtime.sessions import file_size, open_session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, help="in float32, and in int8")
    parser.add_argument("--sizes", nargs="+", default=["1x32"], help="BATCHxSIDE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sessions = [open_session(path, threads=1) for path in options.files]
    rows = []
    for batch, side in (map(int, size.split("x")) for size in options.sizes):
        images = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
        sizes = np.full((batch, 2), side, np.int64)
        given = {"images": images, "sizes": sizes, "original_sizes": sizes}
        seconds: list[list[float]] = [[], []]
        for turn in range(options.rounds + 1):
            for session, values in zip(sessions, seconds, strict=True):
                start = time.process_time()
                session(given)
                if turn:  # the first one warms up
                    values.append(time.process_time() - start)
        medians = [statistics.median(values) for values in seconds]
        ratios = [a / b for a, b in zip(*seconds, strict=True)]
        row = {"batch": batch, "side": side, "float32_s": medians[0], "int8_s": medians[1]}
        rows.append({**row, "ratio": statistics.median(ratios), "seconds": seconds})
        print(
            f"batch {batch}, {side} px: {1e3 * medians[0]:.1f} ms, {1e3 * medians[1]:.1f} ms, {rows[-1]['ratio']:.2f}x"
        )
    sizes_of_files = dict(zip(("float32", "int8"), map(file_size, options.files), strict=True))
    if options.out is not None:
        options.out.write_text(json.dumps({"threads": 1, "bytes": sizes_of_files, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
