"""Rewrites the snapshots after an intended change. Look at the difference before you commit it.

    python tests/snapshots/make.py                   every topic: data/*.json
    python tests/snapshots/make.py options recipes   these topics; "runs" are the names within files of runs

The stored runs are not rewritten: they are what an earlier version left. For another set of them, made by the version
that is imported:

    PYTHONPATH=EARLIER_CHECKOUT/src python tests/snapshots/make.py --make-runs [NAME ...]

which needs that version's kernels (``python setup.py build_ext --inplace`` there) and prints where its package is.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import focalnet
from tests.snapshots import run_folders, topics
from tests.snapshots.compare import write
from tests.snapshots.tiny_data import RUNS


def main(arguments: list[str]) -> None:
    print(f"focalnet of {Path(focalnet.__file__).parent}")
    if arguments[:1] == ["--make-runs"]:
        for run in arguments[1:] or RUNS:
            # The checkpoint contains this path, so it must not depend on the machine.
            run_folders.make(run, Path(tempfile.gettempdir()) / "focalnet-run")
            print(f"made earlier/{run}")
        return
    every = {**topics.EXACT, **topics.NEARLY, "runs": runs}
    for topic in arguments or every:
        print(f"wrote {write(topic, every[topic]())}")


def runs() -> dict[str, dict[str, object]]:
    """Names within the files of every run, resumed today."""
    found = {}
    for run in RUNS:
        with tempfile.TemporaryDirectory() as folder, run_folders.inside(Path(folder)):
            run_folders.lay_out(run, Path(folder))
            groups = run_folders.Groups()
            with groups.watched():
                focalnet.fit(run_folders.recipe(run), output="run")
            found[run] = run_folders.facts(run, groups)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
