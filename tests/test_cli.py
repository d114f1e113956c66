"""The command line: what a person types, and what comes back.

Most tests call ``main`` in this process; those about imports, exit codes and tracebacks start one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from focalnet import weights
from focalnet.cli.main import main
from tests.inference.small import CARD, classifier, noise


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Starts ``focalnet`` with the arguments, or Python with the code."""
    command = ["-c", code] if code else ["-m", "focalnet.cli.main", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(weights.save(classifier(), tmp_path_factory.mktemp("model") / "small.safetensors"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two pictures with the same stem, and a third."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    noise(seed=0).save(folder / "a.png")
    noise(seed=1).save(folder / "sub" / "a.jpg")
    noise(seed=2).save(folder / "b.png")
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- The process ---------------------------------------------------------------------------------


def test_importing_touches_neither_torch_nor_other_heavy_packages() -> None:
    heavy = "{'torch', 'numpy', 'matplotlib', 'PIL', 'timm', 'lightning', 'typer'}"
    found = run(code=f"import sys, focalnet; print(sorted({heavy} & set(sys.modules)))")
    assert found.stdout.strip() == "[]"


def test_help_lists_every_command_without_torch() -> None:
    found = run(
        code="import sys; from focalnet.cli.main import main; main(['--help']); "
        "print({'torch', 'matplotlib', 'lightning', 'timm'} & set(sys.modules))"
    )
    known = ("quickstart", "models", "predict", "explain", "fit", "validate", "convert", "doctor")
    for command in (*known, "check-data", "convert-data"):
        assert f"  {command}  " in found.stdout
    assert found.stdout.splitlines()[-1] == "set()"


def test_an_error_of_the_process_is_one_line_and_exit_code_2(model: str, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    found = run("predict", str(tmp_path / "notes.png"), "--model", model, "--out", str(tmp_path / "out"))
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert "notes.png" in found.stderr
    assert tree(tmp_path) == ["notes.png"]


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_ctrl_c_is_exit_code_130_without_traceback() -> None:
    code = (
        # A test run in the background of a shell ignores Ctrl-C, and its children would too.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys, time, focalnet.data.images as images; from focalnet.cli.main import main; "
        "images.find = lambda _: print('ready', flush=True) or time.sleep(60); "
        "sys.exit(main(['predict', 'x']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip()) == (130, "interrupted")


# --- Bad input: one line that names the thing and the way out, exit code 2, nothing written ------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predcit"], ["predcit", "predict", "focalnet --help"]),
        (["--nope"], ["--nope", "focalnet --help"]),
        (["predict"], ["FILES|FOLDERS|GLOBS", "focalnet predict --help"]),
        (["predict", "a.jpg", "--modle", "x"], ["--modle", "--model", "focalnet predict --help"]),
        (["predict", "a.jpg", "--top", "0"], ["--top", "1"]),
        (["predict", "a.jpg", "--on-error", "ignore"], ["--on-error", "raise", "skip"]),
        (["predict", "a.jpg", "--model"], ["--model"]),
        (["predict", "absent/a.jpg"], ["absent/a.jpg", "no such file"]),
        (["explain", "absent/a.jpg"], ["absent/a.jpg", "no such file"]),
        (["models", "focalnet_tony_lrf"], ["focalnet_tony_lrf", "focalnet_tiny_lrf", "focalnet models"]),
        (["fit", "no/recipe"], ["no/recipe"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_mistyped_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    message = refused(capsys, *arguments)
    for text in expected:
        assert text in message


@pytest.mark.parametrize("command", ["predict", "explain"])
class TestPictureCommandsRefuse:
    def test_an_unknown_model(self, capsys, command: str, pictures: Path, tmp_path: Path) -> None:
        message = refused(
            capsys, command, str(pictures), "--model", "focalnet_tiny_lrv.ms_in1k", "--out", str(tmp_path / "o")
        )
        assert "focalnet_tiny_lrv.ms_in1k" in message
        assert "focalnet_tiny_lrf.ms_in1k" in message
        assert not (tmp_path / "o").exists()

    def test_a_model_file_that_is_none(self, capsys, command: str, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
        message = refused(capsys, command, str(pictures), "--model", str(tmp_path / "bad.safetensors"))
        assert "bad.safetensors" in message

    def test_an_empty_folder(self, capsys, command: str, model: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        message = refused(capsys, command, str(tmp_path / "empty"), "--model", model)
        assert "empty" in message
        assert "no images" in message

    def test_a_pattern_without_match(self, capsys, command: str, model: str, tmp_path: Path) -> None:
        assert "*.jpg" in refused(capsys, command, str(tmp_path / "*.jpg"), "--model", model)

    def test_a_model_for_other_channels(self, capsys, command: str, pictures: Path, tmp_path: Path) -> None:
        one_channel = weights.save(classifier(in_chans=1), tmp_path / "one.safetensors")
        message = refused(capsys, command, str(pictures), "--model", str(one_channel), "--out", str(tmp_path / "o"))
        assert "in_chans" in message
        assert not (tmp_path / "o").exists()

    def test_a_file_that_is_no_picture(self, capsys, command: str, model: str, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("hello")
        message = refused(capsys, command, str(tmp_path / "a.jpg"), "--model", model, "--out", str(tmp_path / "o"))
        assert "a.jpg" in message
        assert tree(tmp_path) == ["a.jpg"]

    def test_an_unwritable_target(self, capsys, command: str, model: str, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        code = main([command, str(pictures), "--model", model, "--out", str(tmp_path / "file")])
        message = capsys.readouterr().err
        assert code == 2
        assert "cannot write" in message
        assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predict", "a.png", "--out", ""], "--out is empty"),
        (["predict", "a.png", "--out="], "--out is empty"),
        (["predict", ""], "an argument is empty"),
        (["fit", "classification/digits", "--output", ""], "--output is empty"),
        (["fit", "classification/cifar10_nano", "--data.root", ""], "data.root is missing"),
        (["convert", "a.pth", ""], "an argument is empty"),
    ],
)
def test_empty_arguments_do_not_mean_the_current_folder(capsys, arguments: list[str], expected: str) -> None:
    assert expected in refused(capsys, *arguments)


def test_an_unknown_block_or_device_is_refused(capsys, model: str, pictures: Path, tmp_path: Path) -> None:
    message = refused(
        capsys, "explain", str(pictures), "--model", model, "--block", "layers.7", "--out", str(tmp_path / "o")
    )
    assert "layers.0.blocks.0" in message
    assert not (tmp_path / "o").exists()
    assert "cpu" in refused(capsys, "predict", str(pictures), "--model", model, "--device", "cuda:77")


# --- What the commands do ------------------------------------------------------------------------


def test_predict_shows_the_best_classes_of_each_picture(capsys, model: str, pictures: Path) -> None:
    assert main(["predict", str(pictures), "--model", model, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == [str(pictures / name) for name in ("a.png", "b.png", "sub/a.jpg")]
    for line in lines[1:3]:
        score, percent, name = line.split()
        assert 0 <= float(score) <= 100
        assert percent == "%"
        assert name in CARD.class_names


def test_predict_writes_pictures_with_unique_names_and_json(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(pictures), str(pictures / "*.png"), "--model", model, "--out", str(out)]) == 0
    assert tree(out) == ["a-prediction.png", "b-prediction.png", "predictions.json", "sub/a-prediction.png"]
    report = json.loads((out / "predictions.json").read_text())
    assert report["model"] == model
    for prediction in report["predictions"]:
        assert Path(prediction["path"]).is_file()
        with Image.open(prediction["picture"]) as picture:
            assert picture.width >= 320
        scores = [entry["score"] for entry in prediction["top"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_predict_names_videos_in_folders(capsys, model: str, pictures: Path) -> None:
    (pictures / "below").mkdir()
    for name in ("below/a.mp4", "b.MOV"):
        (pictures / name).write_bytes(b"")
    assert main(["predict", str(pictures), "--model", model]) == 0
    warning = f"warning: {pictures}/b.MOV and 1 more: videos in folders are passed over; name them to predict them"
    assert warning in capsys.readouterr().err.splitlines()
    found = refused(capsys, "predict", str(pictures / "below"))
    assert f"; {pictures}/below/a.mp4: a video is named itself, not by its folder" in found


def test_predict_skips_broken_pictures_when_told_so(capsys, model: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"")
    arguments = ["predict", str(pictures), "--model", model, "--out", str(tmp_path / "out"), "--batch-size", "2"]
    assert "broken.png" in refused(capsys, *arguments[:-2])
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "skipped: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]) == 3
    only = str(pictures / "broken.png")
    assert main(["predict", only, "--model", model, "--on-error", "skip"]) == 2


def test_explain_writes_a_folder_for_each_picture(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["explain", str(pictures), "--model", model, "--out", str(out), "--kernels"]
    assert main([*arguments, "--block", "layers.0.blocks.0", "--block", "layers.1.blocks.0"]) == 0
    maps = ["layers.0.blocks.0-" + name for name in ("global", "level-1", "level-2", "modulator")]
    maps += ["layers.1.blocks.0-" + name for name in ("global", "level-1", "modulator")]
    expected = [f"{folder}/{name}.png" for folder in ("a", "a-2", "b") for name in [*maps, "sheet"]]
    assert tree(out) == sorted([*expected, "kernels.png"])


def models_json(capsys: pytest.CaptureFixture[str], pattern: str) -> dict[str, Any]:
    assert main(["models", pattern, "--json"]) == 0
    return {model["name"]: model for model in json.loads(capsys.readouterr().out)}


def test_models_tells_size_cost_metrics_and_where_the_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = models_json(capsys, "focalnet_tiny_*")
    tiny = found["focalnet_tiny_srf"]
    assert (round(tiny["params"] / 1e6, 1), round(tiny["macs"] / 1e9, 1)) == (28.4, 4.4)  # Table 1 of the paper
    checkpoint = next(entry for entry in tiny["weights"] if entry["name"] == "focalnet_tiny_srf.ms_in1k")
    assert checkpoint["metrics"] == {"imagenet1k_top1": 82.1}
    assert checkpoint["licence"] == "MIT"
    assert "focalnet_base_srf" not in found


def test_models_takes_part_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = models_json(capsys, "in22k")
    assert {name.removesuffix("_fl3").removesuffix("_fl4") for name in found} == {
        f"focalnet_{size}" for size in ("large", "xlarge", "huge")
    }
    assert all(entry["name"].endswith("in22k") for model in found.values() for entry in model["weights"])


def test_models_prints_every_architecture_and_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    from focalnet import list_models

    assert main(["models"]) == 0
    header, below, *lines = capsys.readouterr().out.splitlines()
    assert (header.split()[0], below.split()[0]) == ("architecture", "weights")
    printed = [line.split()[0] for line in lines]
    assert sorted(printed) == sorted([*list_models(), *weights.list_weights()])


def test_doctor_shows_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for text in ("focalnet", torch.__version__, "threads", torch.backends.cpu.get_cpu_capability(), "weights cache"):
        assert text in printed


def test_doctor_tells_how_to_install_what_is_missing(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2.10",
        'absent-thing[extra]>=1.0,<5; extra == "train"',
        'focalnet[train]; extra == "all"',
        'pytest; extra == "dev"',
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _name: lines)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["absent-thing", "missing:", "pip", "install", '"focalnet[train]"'] for line in printed)
    assert not any("pytest" in line for line in printed)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import focalnet

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == focalnet.__version__


@pytest.mark.slow
def test_quickstart_at_toy_size(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from focalnet.cli import train

    toy = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.accelerator": "cpu"}
    monkeypatch.setattr(train, "fit", partial(train.fit, **toy))
    for _ in range(2):  # a second time, it only shows again
        assert main(["quickstart", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "top-1" in printed
    shown = [line.split()[-1] for line in printed.rpartition("Results:")[2].splitlines() if str(tmp_path) in line]
    assert len(shown) == 3
    assert all(Path(path).exists() for path in shown)
    assert len(tree(tmp_path / "predicted")) == 11


def test_benchmark_times_every_way_a_model_can_run(tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    done = run("benchmark", "focalnet_nano_patch1", "--rounds", "3", "--batch", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["eager", "kernels", "optimized"]
    report = json.loads(out.read_text())
    assert report["input"] == [2, 3, 8, 8]
    assert [len(seconds) for seconds in report["seconds"].values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["focalnet_tiny_sfr"], 'did you mean "focalnet_tiny_srf'),
        (["focalnet_nano", "--dtype", "float8"], 'no dtype "float8"'),
        (["focalnet_nano", "--device", "cuda:77"], 'no device "cuda:77"'),
    ],
)
def test_benchmark_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err
