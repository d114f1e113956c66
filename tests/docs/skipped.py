"""Which commands and code of the documentation are checked but not run, each with its reason.

Everything else is run by ``test_commands.py`` and ``test_code.py``, with stand-ins for images and weights.
"""

from __future__ import annotations

import re

FOLDERS = "run by tests/test_docs_{}.py, in folders as the page describes them"
#: (pages, commands, reason): two regular expressions, of which the second one matches from the start.
COMMANDS: list[tuple[str, str, str]] = [
    (r"docs/data/(classes|labels|masks|checkpoints|inputs)\.md", r"", FOLDERS.format("data")),
    (r"docs/data/objects\.md", r"", FOLDERS.format("objects")),
    (
        r"docs/(export|deploy/(onnxruntime|openvino|tensorrt))\.md",
        r"",
        "run by tests/exporting/test_files.py, with the files that they export",
    ),
    (r"docs/first_hour\.md", r"", "run by tests/test_first_hour.py, in its order"),
    (r"", r"(fit|validate|test|finish) ", "trains or evaluates; options are checked; tests/test_recipes.py trains"),
    (
        r"",
        r"explain .*--evaluate ",
        "takes minutes; tests/explanations/test_evaluation.py runs it with a small network",
    ),
    (
        r"docs/scale\.md",
        r"predict .*--workers",
        "starts processes; tests/attacks does so with a stub",
    ),
    (r"", r"export ", "takes a minute; tests/exporting does it with small networks"),
    (r"", r"compare ", "reads the reader's runs; tests/test_cli_compare.py compares two"),
    (r"", r"benchmark ", "takes minutes; tests/test_cli_benchmark.py runs it with a small network"),
    (r"", r"demo", "serves a page until it is stopped"),
    (r"", r"explain --evaluate", "takes minutes; tests/test_docs_explain.py runs it with one image"),
    (r"", r"check-data FOLDER", "FOLDER is the reader's; docs/data has folders of every layout"),
    (r"", r"convert(-data)? ", "tests/test_docs_data.py and test_docs_objects.py convert such files"),
]
#: (page, start of a line of the block, reason)
CODE: list[tuple[str, str, str]] = [
    (r"docs/data/(checkpoints|inputs)\.md", r"", FOLDERS.format("data")),
    (r"docs/export\.md", r"", "takes a minute; tests/exporting does the same with small networks"),
    (
        r"docs/deploy/(onnxruntime|openvino|tensorrt)\.md",
        r"",
        "run by tests/exporting/test_files.py, with the files that the page exports",
    ),
    (r"docs/first_hour\.md", r"", "run by tests/test_first_hour.py, in its order"),
    (
        r"docs/weights\.md",
        r"model\.push_to_hub|import timm",
        "needs the Hub; tests/weights and tests/integrations run it without",
    ),
    (r"docs/scale\.md", r"import pandas", "reads shards; tests/inference/manifest/test_running.py reads such a folder"),
    (
        r"docs/explain\.md",
        r"evaluation = evaluate\(timm_model",
        "measures the reader's images; tests/explanations/test_features.py does so with a small network",
    ),
    (
        r"docs/int8_cpu\.md",
        r"int8 = ",
        "measures the reader's labeled images; tests/kernels/test_int8.py does so with its own",
    ),
    (r"docs/training\.md", r"run = focalnet\.fit", "trains; tests/training does so at toy size"),
    (r"docs/accelerate\.md", r"model = UperNet|model = timm", "downloads weights; tests/integrations run it without"),
]

#: Pages whose package only readers of the page need; their code runs where it is installed.
PACKAGES = {
    "docs/interop/ray.md": "ray",
    "docs/interop/segmentation_models.md": "segmentation_models_pytorch",
}


def reason_of(page: str, text: str, table: list[tuple[str, str, str]]) -> str | None:
    """The reason of the first entry that matches, or None if this is run."""
    for pages, start, reason in table:
        if re.search(pages, page) and re.search(rf"^(?:{start})", text, re.MULTILINE):
            return reason
    return None
