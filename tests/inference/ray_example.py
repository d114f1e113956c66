"""The example of docs/scale.md: Ray Data predicts a Parquet file of paths, and resumes after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig

from focalnet.inference import BatchPredictor


def predict(manifest: str, results: str, checkpoint: str, model: str, actors: int = 2) -> None:
    """Predicts the images of a Parquet file with a column ``path`` of unique paths, to a folder of Parquet files."""
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="path", checkpoint_path=checkpoint, delete_checkpoint_on_success=False
    )
    ray.data.read_parquet(manifest).map_batches(
        BatchPredictor,
        fn_constructor_args=(model,),
        batch_size=64,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=0,  # 1: a GPU for each actor
    ).write_parquet(results)


if __name__ == "__main__":
    # On one machine; ray.init() takes a cluster. Actors, reading and writing have a processor each, or wait for one.
    ray.init(num_cpus=4, include_dashboard=False)
    predict(*map(str, map(Path.absolute, map(Path, sys.argv[1:4]))), model=sys.argv[4])
