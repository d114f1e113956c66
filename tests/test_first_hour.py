"""Every block of docs/first_hour.md runs, in its order, and leaves what the page says."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

for package in ("lightning", "jsonargparse", "tensorboard"):
    pytest.importorskip(package, reason="the page trains, which needs the extra train")

from focalnet.cli.main import main
from focalnet.training import finishing
from focalnet.training.run_folder import write

PAGE = (Path(__file__).parents[1] / "docs/first_hour.md").read_text()


@pytest.mark.slow
def test_a_newcomer_follows_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw = finishing.write_report
    monkeypatch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/first_hour.md", "exec"), {})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "focalnet"
            if "--trainer.max_epochs 5" in line:
                monkeypatch.setattr(finishing, "write_report", draw)  # which takes longer than the training
            assert main(arguments) == 0, (line, capsys.readouterr().err)
    results = json.loads(Path("run/results.json").read_text())
    assert results["epochs"] == 5
    assert results["test"]["images"] == 18
    assert "<svg" in Path("run/report.html").read_text()
    assert len(json.loads(Path("predicted/predictions.json").read_text())["predictions"]) == 18
    assert list(Path("explained").rglob("*.png"))
    assert capsys.readouterr().out.splitlines()[-1].split()[0] in ("disk", "square")
