"""The page: what is on it, and what happens when a visitor does something.

Handlers get raw values (``preprocess=False``) and check them themselves, so that nothing is decoded or believed before
the limits of ``uploads`` hold, and every mistake becomes a line in the page. They keep nothing of a visitor: the page
sends the image and all settings with each request.

The file has more than 450 lines because the layout and its handlers name the same components.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

import focalnet
from focalnet.demo import rendering
from focalnet.demo.explorer import AUTOMATIC, GATE, VIEWS, Explorer, Map, Reading, Study, View
from focalnet.demo.uploads import Sweeper, Upload, read_upload
from focalnet.errors import ConfigError, FocalNetError
from focalnet.explanations import CONTROLS
from focalnet.listing import describe_models

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
EXAMPLES = ("cat-and-horse.jpg", "cat.jpg", "horse.jpg", "rocket.jpg")
OPACITY = 0.6
MOST_VALUES = 1 << 16  # of a map in the JSON
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
SIDES = ("left", "right")


class Panel(NamedTuple):
    """One of the two overlays, with its settings."""

    image: Any
    caption: Any
    model: Any
    target: Any
    method: Any
    block: Any
    level: Any

    @property
    def settings(self) -> list[Any]:
        """The components that make a ``View``, in the order of its fields."""
        return [self.model, self.target, self.method, self.block, self.level]


class Page:
    """Builds the page and answers its events.

    Args:
        explorer: the models.
        folder: of uploads and downloads.
        sweeper: keeps the folder small.
    """

    def __init__(self, explorer: Explorer, folder: Path, sweeper: Sweeper) -> None:
        self.explorer, self.folder, self.sweeper = explorer, folder, sweeper
        self.blocks = self._build()

    # ---- what is on it ----

    def _build(self) -> Any:
        with gr.Blocks(title="focalnet: see what the model sees", analytics_enabled=False) as blocks:
            with gr.Row(elem_id="head"):
                gr.HTML(
                    '<header class="fn-header"><h1>focalnet</h1><p>See what the model sees: where its answers come '
                    "from, and how far its focal levels look.</p></header>"
                )
                self.theme = gr.Button("Light / dark", size="sm", scale=0, min_width=110, elem_id="theme")
            with gr.Tabs():
                with gr.Tab("Explain"):
                    self._explain_tab()
                with gr.Tab("Models"):
                    self._models_tab()
                with gr.Tab("How to read it"):
                    gr.Markdown((HERE / "how_to_read.md").read_text(encoding="utf-8"), elem_classes="fn-prose")
            self._connect(blocks)
        return blocks

    def _explain_tab(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                self.upload = gr.Image(
                    value=str(HERE / "examples" / EXAMPLES[0]),
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=260,
                    label="Image",
                    show_label=False,
                    placeholder="Drop an image here, paste one, or click to choose a file",
                    elem_id="upload",
                )
                gr.HTML('<p class="fn-title">Examples</p>')
                with gr.Row(elem_id="examples"):
                    self.examples = [
                        gr.Button(Path(name).stem.replace("-", " "), size="sm", min_width=60) for name in EXAMPLES
                    ]
                self.note = gr.HTML(elem_id="message")
                self.predictions = [gr.HTML(elem_id=f"prediction-{side}") for side in SIDES]
            with gr.Column(scale=8, min_width=320):
                with gr.Row(equal_height=False):
                    self.panels = [self._panel(side) for side in SIDES]
                self.opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the maps", elem_id="opacity")
                with gr.Row():
                    self.download_image = gr.DownloadButton("Download picture", elem_id="download-picture", size="md")
                    self.download_json = gr.DownloadButton("Download JSON", elem_id="download-json", size="md")
        self.strips = [gr.HTML(elem_id=f"levels-{side}") for side in SIDES]
        gr.HTML(
            '<h3 class="fn-heading">One pixel</h3><p class="fn-hint">Click into a map, or type a position: what the '
            "gates are there, and which pixels the block sees from there.</p>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                with gr.Row():
                    self.x = gr.Number(None, label="x", precision=0, minimum=0, min_width=80, elem_id="pixel-x")
                    self.y = gr.Number(None, label="y", precision=0, minimum=0, min_width=80, elem_id="pixel-y")
                self.read = gr.Button("Read the left map there", elem_id="read-pixel")
            with gr.Column(scale=4, min_width=280):
                self.reading = gr.HTML(elem_id="reading")
            with gr.Column(scale=4, min_width=280):
                self.field = gr.Image(
                    label="Receptive field",
                    show_label=False,
                    interactive=False,
                    visible=False,
                    buttons=[],
                    format="jpeg",
                    elem_id="field",
                )

    def _panel(self, side: str) -> Panel:
        names = list(self.explorer.models)
        name = names[min(SIDES.index(side), len(names) - 1)]
        with gr.Column(min_width=300):
            image = gr.Image(
                label=f"Map on the {side}",
                show_label=False,
                interactive=False,
                buttons=["fullscreen"],
                format="jpeg",
                elem_id=f"map-{side}",
                elem_classes="fn-map",
            )
            caption = gr.HTML(elem_id=f"caption-{side}")
            model = gr.Dropdown(names, value=name, label="Model", visible=len(names) > 1, elem_id=f"model-{side}")
            with gr.Row():
                target = gr.Dropdown([], label="Class or object", min_width=170, elem_id=f"class-{side}")
                method = gr.Dropdown(
                    _method_choices(), value=View(name).method, label="Method", min_width=170, elem_id=f"method-{side}"
                )
            with gr.Row():
                block = gr.Dropdown(
                    self._block_choices(name), value=AUTOMATIC, label="Block", min_width=170, elem_id=f"block-{side}"
                )
                level = gr.Dropdown(
                    ["level 1"], value="level 1", label="Level", min_width=170, visible=False, elem_id=f"level-{side}"
                )
        return Panel(image, caption, model, target, method, block, level)

    def _models_tab(self) -> None:
        self.filter = gr.Textbox(
            label="Part of a name, or a pattern such as *_lrf*", max_lines=1, max_length=100, elem_id="filter"
        )
        self.zoo = gr.HTML(_zoo(""), elem_id="zoo")

    def _connect(self, blocks: Any) -> None:
        settings = [self.upload, *(s for panel in self.panels for s in panel.settings), self.opacity]
        common: dict[str, Any] = {
            "preprocess": False,
            "concurrency_id": "network",
            "concurrency_limit": 1,
            "trigger_mode": "always_last",
            "show_progress": "minimal",
            "api_visibility": "private",
        }
        drawn = [*(c for p in self.panels for c in (p.image, p.caption, p.level)), *self.strips, *self._downloads()]
        chosen = [c for p in self.panels for c in (p.target, p.block)]
        pixel = [self.reading, self.field, self.x, self.y]
        fresh = [self.note, *self.predictions, *chosen, *drawn, *pixel]
        no_reading = {self.reading: "", self.field: gr.update(value=None, visible=False)}
        no_answer = {**dict.fromkeys(self.predictions, ""), **self._nothing(), **no_reading}
        start = self._answers(self.start, no_answer)
        update = self._answers(self.update, self._nothing())
        typed = self._answers(self.read_typed, no_reading)
        blocks.load(start, settings, fresh, **common)
        self.upload.change(start, settings, fresh, **common)
        for button, name in zip(self.examples, EXAMPLES, strict=True):
            button.click(_example(name), None, [self.upload], **{**common, "concurrency_id": "example"})
        for panel in self.panels:
            panel.model.input(start, settings, fresh, **common)
            for setting in panel.settings[1:]:
                setting.input(update, settings, [self.note, *drawn], **common)
        self.opacity.input(update, settings, [self.note, *drawn], **common)
        readings = [self.note, *pixel, self.download_json]
        for index, panel in enumerate(self.panels):
            clicked = self._answers(self._clicked(index), no_reading)
            panel.image.select(clicked, settings, readings, **common)
        at = [self.x, self.y, *settings]
        self.read.click(typed, at, readings, **common)
        self.x.submit(typed, at, readings, **common)
        self.y.submit(typed, at, readings, **common)
        self.theme.click(None, js="() => { document.body.classList.toggle('dark'); }", api_visibility="private")
        self.filter.input(_zoo, [self.filter], [self.zoo], **{**common, "concurrency_id": "zoo"})

    def _downloads(self) -> list[Any]:
        return [self.download_image, self.download_json]

    # ---- what happens ----

    def _answers(
        self, handler: Callable[..., dict[Any, Any]], cleared: Mapping[Any, Any]
    ) -> Callable[..., dict[Any, Any]]:
        """The handler, with its mistakes as a line in the page, and the folder kept small.

        Args:
            handler: gives the new content of components.
            cleared: their content after a mistake, so that nothing stands there that answers an earlier question.
        """

        @wraps(handler)
        def answer(*values: Any) -> dict[Any, Any]:
            self.sweeper.sweep()
            try:
                return {self.note: "", **handler(*values)}
            except FocalNetError as error:
                said = str(error)
            except Exception:  # a bug: the terminal has its traceback, the visitor a line
                logger.exception("the page could not answer")
                said = "something went wrong here; the server's log says what"
            return {**cleared, self.note: rendering.message(said, kind="error")}

        return answer

    def start(self, value: Any, *settings: Any) -> dict[Any, Any]:
        """A new image or model: what is predicted, with the best target on the left, the second best on the right."""
        upload = read_upload(value, self.folder)
        views, opacity = self._views(settings)
        studies = [self.explorer.study(view.model, upload) for view in views]
        same = views[0].model == views[1].model
        answer: dict[Any, Any] = {}
        for index, (panel, study) in enumerate(zip(self.panels, studies, strict=True)):
            choices = _target_choices(study)
            best = choices[min(index, len(choices) - 1) if same else 0][1] if choices else None
            blocks = self._block_choices(views[index].model)
            block = views[index].block if views[index].block in [value for _, value in blocks] else AUTOMATIC
            views[index] = views[index]._replace(target=best or "#0", block=block)
            answer[panel.target] = gr.update(
                choices=choices, value=best, interactive=bool(choices), label=_target_label(study)
            )
            answer[panel.block] = gr.update(choices=blocks, value=block)
        answer[self.predictions[0]] = rendering.prediction(studies[0], "" if same else views[0].model)
        answer[self.predictions[1]] = "" if same else rendering.prediction(studies[1], views[1].model)
        answer[self.reading], answer[self.field] = "", gr.update(value=None, visible=False)
        answer[self.x], answer[self.y] = None, None
        note = f"{upload.name}: {upload.note}" if upload.note else ""
        return {**answer, **self._draw(upload, views, opacity), self.note: rendering.message(note)}

    def update(self, value: Any, *settings: Any) -> dict[Any, Any]:
        """Other settings for the same image."""
        upload = read_upload(value, self.folder)
        views, opacity = self._views(settings)
        return self._draw(upload, views, opacity)

    def read_typed(self, x: Any, y: Any, value: Any, *settings: Any) -> dict[Any, Any]:
        """The pixel at a position that was typed, in the map on the left."""
        if not all(isinstance(at, (int, float)) and at == at for at in (x, y)):
            raise ConfigError("x and y: type whole numbers of pixels, from the left and from the top of the image")
        return self._read(0, int(x), int(y), value, settings)

    def _clicked(self, index: int) -> Callable[..., dict[Any, Any]]:
        def clicked(event: gr.SelectData, value: Any, *settings: Any) -> dict[Any, Any]:
            """The pixel that was clicked on, in pixels of the drawing."""
            upload = read_upload(value, self.folder)
            scale = upload.image.width / rendering.shown(upload.image).width
            x, y = (int(at * scale) for at in event.index)
            return self._read(index, x, y, value, settings)

        return clicked

    def _read(self, index: int, x: int, y: int, value: Any, settings: Sequence[Any]) -> dict[Any, Any]:
        upload = read_upload(value, self.folder)
        if not (0 <= x < upload.image.width and 0 <= y < upload.image.height):
            width, height = upload.image.size
            raise ConfigError(f"pixel ({x}, {y}) is outside the image of {width} x {height} pixels")
        views, opacity = self._views(settings)
        view = views[index]
        reading = self.explorer.reading(view, upload, x, y)
        return {
            self.reading: rendering.reading_table(reading, view.method),
            self.field: gr.update(value=rendering.field_image(upload.image, reading, opacity), visible=True),
            self.x: x,
            self.y: y,
            self.download_json: self._write_json(upload, [(view, self.explorer.map(view, upload))], reading),
        }

    def _draw(self, upload: Upload, views: Sequence[View], opacity: float) -> dict[Any, Any]:
        """Both panels, the gates below them and the downloads; a panel that cannot be drawn says why in its place."""
        answer: dict[Any, Any] = {}
        maps: list[tuple[View, Map]] = []
        for panel, view in zip(self.panels, views, strict=True):
            try:
                values = self.explorer.map(view, upload)
            except ConfigError as error:
                answer[panel.image] = None
                answer[panel.caption] = rendering.message(str(error), kind="error")
            else:
                maps.append((view, values))
                answer[panel.image] = rendering.overlay(upload.image, values, opacity)
                answer[panel.caption] = rendering.caption(*self._texts(view, values), values)
            levels = self.explorer.study(view.model, upload).levels(view.block)
            answer[panel.level] = gr.update(
                choices=levels,
                value=view.level if view.level in levels else levels[0],
                visible=view.method == GATE,
            )
        shown: set[tuple[str, str]] = set()
        for component, view in zip(self.strips, views, strict=True):
            strip = self.explorer.strip(view, upload)
            block = strip[0].blocks[0]
            again = (view.model, block) in shown
            shown.add((view.model, block))
            title = f"Gates and modulator of {block}" + (f", {view.model}" if len(self.explorer.models) > 1 else "")
            answer[component] = "" if again else rendering.strip(upload.image, title, strip, opacity)
        title = f"{upload.name}, explained by focalnet"
        if not maps:
            return {**answer, **dict.fromkeys(self._downloads())}
        texts = [(*self._texts(view, values), values) for view, values in maps]
        answer[self.download_image] = self._write_picture(rendering.picture(upload.image, title, texts, opacity))
        answer[self.download_json] = self._write_json(upload, maps)
        return answer

    def _nothing(self) -> dict[Any, Any]:
        """Empty panels."""
        images = {panel.image: None for panel in self.panels}
        texts = {panel.caption: "" for panel in self.panels}
        return {**images, **texts, **dict.fromkeys(self.strips, ""), **dict.fromkeys(self._downloads())}

    def _views(self, settings: Sequence[Any]) -> tuple[list[View], float]:
        """The two views and the opacity; raises ConfigError for what a page would not send."""
        *fields, opacity = settings
        if not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
            raise ConfigError("opacity: must be between 0 and 1")
        views = []
        for start in (0, len(View._fields)):
            values = fields[start : start + len(View._fields)]
            given = {name: value for name, value in zip(View._fields, values, strict=True) if value is not None}
            if not all(isinstance(value, str) and len(value) <= 500 for value in given.values()):
                raise ConfigError("a setting is not one of its list: choose it again")
            views.append(View(**{"model": next(iter(self.explorer.models)), **given}))
        return views, float(opacity)

    def _texts(self, view: View, values: Map) -> tuple[str, str]:
        """The heading of a panel, and the line below it."""
        what = view.method.replace("_", " ")
        heading = (
            f"{values.target} · {what}" if values.target else f"{view.level} · gate" if view.method == GATE else what
        )
        if len(self.explorer.models) > 1:
            heading = f"{view.model}: {heading}"
        blocks = values.blocks
        where = ", ".join(blocks) if len(blocks) < 4 else f"{blocks[0]} to {blocks[-1]} ({len(blocks)} blocks)"
        return heading, f"{where}: {values.title}" if where else values.title

    def _block_choices(self, name: str) -> list[tuple[str, str]]:
        return [(AUTOMATIC, AUTOMATIC), *((block, block) for block in self.explorer.blocks(name))]

    def _new_folder(self) -> Path:
        folder = self.folder / "downloads" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def _write_picture(self, image: Any) -> str:
        path = self._new_folder() / "focalnet-explanation.png"
        image.save(path, compress_level=1)
        return str(path)

    def _write_json(self, upload: Upload, maps: Sequence[tuple[View, Map]], reading: Reading | None = None) -> str:
        path = self._new_folder() / "focalnet-explanation.json"
        content = {
            "focalnet": focalnet.__version__,
            "image": {
                "name": upload.name,
                "sha256": upload.key,
                "size": list(upload.image.size),
                "original_size": list(upload.original),
            },
            "maps": [self._describe(upload, view, values) for view, values in maps],
            "pixel": None if reading is None else _pixel(reading),
        }
        path.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        return str(path)

    def _describe(self, upload: Upload, view: View, values: Map) -> dict[str, Any]:
        study = self.explorer.study(view.model, upload)
        kept = values.values.size <= MOST_VALUES
        return {
            "model": view.model,
            "prediction": None if study.result is None else study.result.to_dict(),
            "method": view.method,
            "level": view.level if view.method == GATE else None,
            "target": values.target or None,
            "blocks": list(values.blocks),
            "region": [round(edge, 3) for edge in values.region],
            "shape": list(values.values.shape),
            "signed": values.signed,
            "values": [[float(f"{v:.6g}") for v in row] for row in values.values.tolist()] if kept else None,
            "values_note": "" if kept else "too many for a page: focalnet.explanations.attribute computes them",
        }


def _example(name: str) -> Callable[[], str]:
    path = str(HERE / "examples" / name)
    return lambda: path


def theme() -> Any:
    """Gradio's theme with quiet labels and the fonts of the visitor's system, so that none is fetched."""
    base = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    labels = {
        f"block_{part}_{key}{mode}": value
        for part in ("title", "label")
        for key, value in {
            "background_fill": "transparent",
            "text_color": "*body_text_color_subdued",
            "text_weight": "500",
            "padding": "0",
        }.items()
        for mode in ("", "_dark")
        if not (mode and key in ("text_weight", "padding"))
    }
    return base.set(
        **labels,
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_shadow="none",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
    )


def _pixel(reading: Reading) -> dict[str, Any]:
    return {
        "x": reading.x,
        "y": reading.y,
        "block": reading.block,
        "row": reading.row,
        "column": reading.column,
        "gates": reading.gates,
        "modulator_norm": reading.modulator,
        "map_value": reading.value,
    }


def _method_choices() -> list[tuple[str, str]]:
    """Names as they are read by people; controls say that they are."""
    names = [name for name in VIEWS if name not in CONTROLS]
    return [*((name.replace("_", " "), name) for name in names), *((f"control: {name}", name) for name in CONTROLS)]


def _target_choices(study: Study) -> list[tuple[str, str]]:
    return [
        (f"{target.name}  {score:.1%}" if score is not None else target.name, f"#{i}")
        for i, (target, score) in enumerate(study.targets)
    ]


def _target_label(study: Study) -> str:
    if not study.targets:
        return "nothing is predicted"
    kind = type(study.result).__name__
    return {"Classification": "Class", "Detections": "Object", "SemanticMap": "Class", "PanopticMap": "Segment"}[kind]


def _zoo(pattern: Any) -> str:
    """The table of models whose names match."""
    text = pattern.strip()[:100] if isinstance(pattern, str) else ""
    try:
        listing = describe_models(text)
    except FocalNetError as error:
        return rendering.message(str(error), kind="error")
    return rendering.zoo_table(listing)
