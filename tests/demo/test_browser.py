"""The page in a real browser: Chromium without a window, driven by Playwright.

Screenshots are written to the folder that ``FOCALNET_SCREENSHOTS`` names, to be looked at. Without Chromium the tests
are skipped, unless ``FOCALNET_REQUIRE_BROWSER`` is set, as it is where Chromium can be installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import EXAMPLES, Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None and not os.environ.get("FOCALNET_REQUIRE_BROWSER"):
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)
api = pytest.importorskip("playwright.sync_api")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PATIENCE = 15_000  # milliseconds, for busy machines


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens the page as a new visitor and waits for the first explanation; nothing may fail or leave this machine."""
    contexts, faults = [], []

    def visit(**settings: Any) -> Any:
        context = browser.new_context(**{**DESKTOP, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        own = (served.address, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.on("console", lambda entry: faults.append(entry.text) if entry.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(served.address)
        page.wait_for_selector("#caption-right strong")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def screenshot(tmp_path: Path) -> Callable[[Any, str], Image.Image]:
    def screenshot(page: Any, name: str) -> Image.Image:
        folder = Path(os.environ.get("FOCALNET_SCREENSHOTS", tmp_path))
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        with Image.open(folder / f"{name}.png") as image:
            return image.convert("RGB")

    return screenshot


def choose(page: Any, picker: str, option: str) -> None:
    """Chooses the option that is this text, or begins with it and goes on with a score."""
    page.click(f"#{picker} input")
    text = re.compile(rf"^[✓\s]*{re.escape(option)}(\s+[\d.]+%)?\s*$")
    page.locator("ul[role=listbox] li", has_text=text).click()


def heading(page: Any, side: str, text: str) -> None:
    """Waits until a panel's heading is this."""
    page.wait_for_selector(f"#caption-{side} strong:text-is({json.dumps(text, ensure_ascii=False)})")


def pixels(page: Any, selector: str) -> np.ndarray:
    """An image of the page as it is drawn there."""
    return np.asarray(Image.open(BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def test_the_page_explains_an_example_at_once(visit, screenshot):
    page = visit()
    heading(page, "left", "cat · context cam")
    heading(page, "right", "horse · context cam")
    assert page.locator("#prediction-left .fn-bar").count() == 5
    assert page.locator("#prediction-left .fn-name").first.inner_text() == "cat"
    assert page.locator("#levels-left figure").count() == 4
    assert page.locator("#levels-right figure").count() == 0  # it is the same block
    image = screenshot(page, "desktop")
    assert image.width == 1280
    assert np.asarray(image.crop((0, 0, 30, 30))).mean() > 200


def test_an_upload_then_all_pickers_and_the_opacity(visit, tmp_path):
    Image.open(EXAMPLES / "horse.jpg").save(tmp_path / "mine.png")
    page = visit()
    page.click("#upload [aria-label='Remove Image']")
    page.set_input_files("#upload input[type=file]", tmp_path / "mine.png")
    heading(page, "left", "horse · context cam")
    choose(page, "class-left", "deer")
    heading(page, "left", "deer · context cam")
    choose(page, "method-left", "integrated gradients")
    heading(page, "left", "deer · integrated gradients")
    assert page.locator("#level-left").count() == 0
    choose(page, "method-left", "gate")
    page.wait_for_selector("#level-left")
    choose(page, "block-left", "layers.0.blocks.1")
    page.wait_for_selector("#caption-left span:has-text('layers.0.blocks.1')")
    choose(page, "level-left", "global")
    heading(page, "left", "global · gate")
    assert page.locator("#levels-right figure").count() == 4  # two blocks now
    colored, drawing = pixels(page, "#map-left img"), page.get_attribute("#map-left img", "src")
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_function(
        "old => { const now = document.querySelector('#map-left img'); return now?.src !== old && now?.complete; }",
        arg=drawing,
    )
    plain = pixels(page, "#map-left img")
    assert np.abs(colored - plain).mean() > 10
    assert np.ptp(plain, axis=2).mean() < 3  # the drawing is black and white


def test_a_click_reads_the_gates_of_a_pixel(visit, screenshot):
    page = visit()
    box = page.locator("#map-right img").bounding_box()
    page.locator("#map-right img").click(position={"x": 0.8 * box["width"], "y": 0.3 * box["height"]})
    page.wait_for_selector("#reading .fn-facts")
    facts = page.locator("#reading").inner_text()
    assert "row 1, column 3 of 4 x 4" in facts
    assert "level 2" in facts
    assert abs(int(page.input_value("#pixel-x input")) - 288) <= 2
    page.wait_for_selector("#field img")
    screenshot(page, "pixel")
    page.fill("#pixel-x input", "10")
    page.fill("#pixel-y input", "350")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reading dd:has-text('row 3, column 0')")
    page.fill("#pixel-x input", "9999")
    page.click("#read-pixel")
    page.wait_for_selector("#message [role=alert]:has-text('outside the image of 360 x 360 pixels')")


def test_picture_and_json_are_downloaded(visit):
    page = visit()
    with page.expect_download() as waiting:
        page.click("#download-picture")
    assert waiting.value.suggested_filename == "focalnet-explanation.png"
    with Image.open(waiting.value.path()) as picture:
        assert picture.width > 900
    with page.expect_download() as waiting:
        page.click("#download-json")
    assert waiting.value.suggested_filename == "focalnet-explanation.json"
    content = json.loads(Path(waiting.value.path()).read_text())
    assert [each["target"] for each in content["maps"]] == ["cat", "horse"]
    assert content["maps"][0]["shape"] == [32, 32]
    assert np.array(content["maps"][0]["values"]).shape == (32, 32)
    assert content["maps"][0]["prediction"]["top"][0]["name"] == "cat"


def test_mistakes_are_told_in_the_page(visit, screenshot, tmp_path):
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><circle r='9'/></svg>")
    (tmp_path / "broken.png").write_bytes((EXAMPLES / "cat.jpg").read_bytes()[:900])
    Image.new("1", (8000, 8000)).save(tmp_path / "huge.png")
    page = visit()
    for name, said in (
        ("drawing.svg", "drawing.svg: is a drawing (SVG)"),
        ("broken.png", "broken.png: is truncated or damaged"),
        ("huge.png", "huge.png: has more than 50 megapixels"),
    ):
        page.click("#upload [aria-label='Remove Image']")
        page.wait_for_selector("#message [role=alert]:has-text('drop one, or take an example')")
        page.set_input_files("#upload input[type=file]", tmp_path / name)
        page.wait_for_selector(f"#message [role=alert]:has-text({json.dumps(said)})")
        assert (
            page.locator("#caption-left strong, #prediction-left .fn-bar, #map-left img, #levels-left img").count() == 0
        )
    screenshot(page, "mistake")
    page.get_by_role("button", name="rocket").click()
    page.wait_for_selector("#message [role=alert]", state="hidden")
    heading(page, "left", "ship · context cam")


def test_two_visitors_at_once_see_their_own(visit):
    first, second = visit(), visit()
    for page, example in ((first, "rocket"), (second, "horse")):
        page.get_by_role("button", name=example, exact=True).click()
    heading(first, "left", "ship · context cam")
    heading(second, "left", "horse · context cam")
    choose(first, "method-left", "control: edges")
    heading(first, "left", "edges")
    assert second.locator("#caption-left strong").inner_text() == "horse · context cam"


def test_dark_mode_follows_the_system_and_the_button(visit, screenshot):
    page = visit(color_scheme="dark")
    image = screenshot(page, "dark")
    assert np.asarray(image.crop((0, 0, 30, 30))).mean() < 60
    page.click("#theme")
    assert np.asarray(screenshot(page, "light-again").crop((0, 0, 30, 30))).mean() > 200


def test_a_phone_has_no_sideways_scrolling(visit, screenshot):
    page = visit(**PHONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 390
    page.locator("#map-left img").tap()
    page.wait_for_selector("#reading .fn-facts")
    page.locator("#field").scroll_into_view_if_needed()
    page.wait_for_selector("#field img")
    assert page.evaluate(width) == 390
    screenshot(page, "phone")
    for tab in ("Models", "How to read it"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(200)
        assert page.evaluate(width) == 390
        screenshot(page, f"phone-{tab.split()[0].lower()}")


def test_the_zoo_is_listed_and_filtered(visit, screenshot):
    page = visit()
    page.get_by_role("tab", name="Models").click()
    page.wait_for_selector("#zoo th:has-text('focalnet_tiny_srf')")
    screenshot(page, "models")
    page.locator("#filter input").press_sequentially("nano")
    page.wait_for_selector("#zoo:not(:has-text('focalnet_tiny_srf'))")
    assert "focalnet_nano.cifar10" in page.locator("#zoo").inner_text()
    page.locator("#filter input").press_sequentially("o")
    page.wait_for_selector("#zoo [role=alert]:has-text('no model matches')")


def test_everything_is_reached_by_the_keyboard(visit):
    page = visit()
    reached = set()
    page.locator("#theme").focus()
    for _ in range(45):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(document.activeElement.closest('[id]') || {}).id || ''"))
        reached.add(
            page.evaluate("(document.activeElement.closest('.block[id], .column[id], button[id]') || {}).id || ''")
        )
    wanted = {"class-left", "method-left", "block-left", "class-right", "method-right", "block-right", "opacity",
              "download-picture", "download-json", "pixel-x", "pixel-y", "read-pixel"}  # fmt: skip
    assert wanted <= reached, wanted - reached
    page.locator("#class-left input").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#caption-left strong:not(:text-is('cat · context cam'))")
