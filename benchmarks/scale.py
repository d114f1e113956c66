"""Measures prediction at scale: start with 10 million rows, and what the bookkeeping costs per row.

::

    python benchmarks/scale.py --out benchmarks/results/scale.json

writes manifests of 10 million paths (text and Parquet, about 1 GB) to a temporary folder and measures, each in a
process of its own: seconds and peak memory from starting Python until the first row is predicted, with a predictor that
takes no time (a model adds what loading it takes); processor time per row of all that is not prediction, for each kind
of manifest and format of shards, over 100,000 rows; and the processor time of a prediction, to compare it with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from focalnet.files import write
from focalnet.results import Classification

ROWS = 10_000_000


class Nothing:
    """A predictor whose results are constant, and that ends the process before row ``stop``."""

    output, identity = "classification", {"name": "nothing", "sha256": "0"}

    def __init__(self, number: int = 0, stop: int | None = None) -> None:
        self.stop = stop
        names = tuple(f"a class {i}" for i in range(5))
        self.result = Classification(tuple(range(5)), tuple(1 / (i + 2) for i in range(5)), names)

    def attempt(self, images):
        for i, _ in enumerate(images):
            if i == self.stop:
                print(json.dumps({"peak_MB": _peak()}), flush=True)
                os._exit(0)
            yield self.result


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def write_manifests(folder: Path) -> dict[str, Path]:
    import pyarrow as arrow
    from pyarrow import parquet

    text, table = folder / "rows.txt", folder / "rows.parquet"
    with text.open("w") as file, parquet.ParquetWriter(table, arrow.schema([("path", arrow.string())])) as writer:
        for start in range(0, ROWS, 100_000):
            paths = [f"/data/images/train/{i // 1000:06}/photo_{i:09}.jpg" for i in range(start, start + 100_000)]
            file.write("\n".join(paths) + "\n")
            writer.write_table(arrow.table({"path": paths}))
    return {"text": text, "parquet": table}


def start(manifest: str, out: str) -> None:
    """All until the first row of a run is predicted."""
    from focalnet.inference.manifest import running

    running._ModelPredictor = lambda model, number, **options: Nothing(number, stop=0)
    running.predict_manifest(manifest, out, "nothing", device="cpu")


def bookkeeping(manifest: str, out: str, shard_format: str) -> None:
    """A hundredth of the shards, with a predictor that takes no time."""
    from focalnet.inference.manifest import running

    running._ModelPredictor = lambda model, number, **options: Nothing(number)
    before = time.process_time()
    rows = running.predict_manifest(manifest, out, "nothing", shard_format=shard_format, share=(1, 100)).rows
    seconds = time.process_time() - before
    print(json.dumps({"rows": rows, "cpu_us_per_row": round(1e6 * seconds / rows, 2), "peak_MB": _peak()}))


def prediction(folder: str) -> None:
    """Images of 32 pixels by the embedded classifier, without a manifest."""
    import numpy as np
    from PIL import Image

    from focalnet.inference import Predictor

    pixels = np.random.default_rng(0)
    paths = [f"{folder}/{i}.jpg" for i in range(1000)]
    for path in paths:
        Image.fromarray(pixels.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    predictor = Predictor("focalnet_nano.cifar10", "cpu")
    list(predictor.attempt(paths[:100]))
    before = time.process_time()
    list(predictor.attempt(paths))
    print(
        json.dumps(
            {"images": len(paths), "cpu_us_per_row": round(1e6 * (time.process_time() - before) / len(paths), 2)}
        )
    )


def measured(*arguments: str | Path) -> dict[str, float]:
    """What a part of this script measures, in a process of its own, and the seconds of that process."""
    before, used = time.perf_counter(), sum(os.times()[2:4])
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = {"cpu_s": round(sum(os.times()[2:4]) - used, 2), "wall_s": round(time.perf_counter() - before, 2)}
    return json.loads(done.stdout.splitlines()[-1]) | seconds


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifests = write_manifests(folder)
        record: dict[str, object] = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "rows": ROWS,
            "bytes": {kind: path.stat().st_size for kind, path in manifests.items()},
        }
        for kind, path in manifests.items():
            record[f"start_{kind}"] = [measured("start", path, folder / f"{kind}-{i}") for i in range(3)]
        record["prediction"] = measured("prediction", folder)
        for kind, path in manifests.items():
            for shard_format in ("parquet", "jsonl"):
                place = folder / f"{kind}-{shard_format}"
                record[f"{kind}_to_{shard_format}"] = measured("bookkeeping", path, place, shard_format)
    write(out, (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    parts = {"start": start, "bookkeeping": bookkeeping, "prediction": prediction}
    if sys.argv[1:2] and sys.argv[1] in parts:
        parts[sys.argv[1]](*sys.argv[2:])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
        main(parser.parse_args().out)
