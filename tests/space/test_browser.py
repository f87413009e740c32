# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The Space as people use it: in a headless Chromium, by mouse, by keyboard alone, and on a narrow screen.

    pytest tests/space/test_browser.py -m browser
    URFM_MODEL=urfm URFM_FIGURES=hub_cards/figures pytest tests/space/test_browser.py -m browser -k figures

The second command draws the README's screenshots again, with the demo's model.
"""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.data.raw_inputs import image_bytes, write_video

from .conftest import SPACE


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
pytest.importorskip("gradio", reason="the Space needs gradio: pip install 'urfm[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="these tests need playwright: pip install playwright")

SECRET = "Mustermann-Erika-1970"
SHOWN = "#u-result:not([aria-busy]) #u-result-title"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT_MS = 90_000


class App:
    """app.py in a process of its own, with a home and a folder for temporary files of its own."""

    def __init__(self, model: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}/"
        self.log = folder / "log"
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        environment = os.environ | {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home"),
                                    "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}  # fmt: skip
        for name in ("URFM_MODEL", "URFM_INDEX"):
            environment.pop(name, None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SPACE / "app.py"), "--model", model, "--port", str(port)],
                env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the app did not start: {self.log.read_text()}")

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture(scope="module")
def app(tiny_folder, tmp_path_factory):
    app = App(os.environ.get("URFM_MODEL") or str(tiny_folder), tmp_path_factory.mktemp("app"))
    yield app
    if app.process.poll() is None:
        app.process.kill()
        app.process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app, browser):
    with opened(app, browser, viewport={"width": 1280, "height": 900}) as page:
        yield page


class opened:
    """A page that must load nothing from elsewhere and raise no error of its own."""

    def __init__(self, app: App, browser, **options):
        self.app, self.context, self.troubles = app, browser.new_context(**options), []

    def __enter__(self):
        page = self.context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on(
            "console",
            lambda message: self.troubles.append(message.text) if "Content Security" in message.text else None,
        )
        page.on("request", lambda request: None if request.url.startswith((self.app.url, "data:", "blob:"))
                else self.troubles.append(request.url))  # fmt: skip
        page.goto(self.app.url)
        page.wait_for_selector(".u-example")
        return page

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert not self.troubles


def upload(page, data: bytes, name: str = "scan.bin"):
    page.set_input_files("#u-file", files=[{"name": name, "mimeType": "application/octet-stream", "buffer": data}])


def shown_pixels(page, view: str) -> np.ndarray:
    """What the browser has decoded of a picture, (height, width, 4)."""
    width, height, values = page.evaluate(
        "view => { const image = document.querySelector(`img[data-view=${view}]`), canvas = document.createElement('canvas');"
        "[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight]; const draw = canvas.getContext('2d');"
        "draw.drawImage(image, 0, 0); return [canvas.width, canvas.height,"
        "[...draw.getImageData(0, 0, canvas.width, canvas.height).data]] }",
        view,
    )
    return np.array(values, np.uint8).reshape(height, width, 4)


def test_an_image_is_shown_and_its_picture_saved(page, phantom):
    upload(page, image_bytes(phantom.astype(np.uint16) * 257))  # of 16 bits
    page.wait_for_selector(SHOWN)
    assert page.inner_text(SHOWN) == "What the model sees"
    scan = shown_pixels(page, "scan")
    assert scan.shape == (192, 192, 4) and np.abs(scan[..., 0].astype(int) - phantom).mean() < 4
    assert np.ptp(shown_pixels(page, "tokens")[..., :3].astype(int), axis=-1).max() > 50  # colours
    assert page.locator("polygon").count() == 2 and page.locator("#u-answers li").count() == 5
    assert page.locator(".u-cases img").count() == 6 and not page.locator("#u-frame").count()
    with page.expect_download() as download:
        page.click("#u-save")
    assert download.value.suggested_filename == "urfm.png"
    saved = Image.open(download.value.path())
    assert saved.format == "PNG" and saved.width == 1460 and not saved.text
    assert np.asarray(saved.convert("RGB")).std() > 20


def test_a_cine_loop_has_a_slider_that_changes_everything(page, echo):
    upload(page, echo, "loop.dcm")
    page.wait_for_selector(SHOWN)
    assert "SonoSite" in page.inner_text(".u-facts") and page.inner_text("#u-frame-place") == "1 of 30"
    before = shown_pixels(page, "scan")
    page.locator("#u-frame").fill("17")
    assert page.inner_text("#u-frame-place") == "18 of 30" and page.inner_text("[data-frame-name]") == "frame 18 of 30"
    page.wait_for_function("document.querySelector('img[data-view=scan]').complete")
    assert (shown_pixels(page, "scan") != before).any()
    page.click("#u-play")
    assert page.inner_text("#u-play") == "Pause"
    page.wait_for_function("document.getElementById('u-frame-place').textContent !== '18 of 30'")
    page.click("#u-play")
    stopped = page.inner_text("#u-frame-place")
    page.wait_for_timeout(300)
    assert page.inner_text("#u-play") == "Play" and page.inner_text("#u-frame-place") == stopped


def test_a_film_can_be_dropped_and_a_miss_does_not_leave_the_page(page, tmp_path):
    write_video(tmp_path / "film.mp4", 0)
    data = (tmp_path / "film.mp4").read_bytes()
    drop = (
        "([where, bytes]) => { const transfer = new DataTransfer(); transfer.items.add(new File([new Uint8Array(bytes)],"
        "'film.mp4')); for (const kind of ['dragover', 'drop']) document.querySelector(where).dispatchEvent("
        "new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true})) }"
    )
    page.evaluate(drop, ["#u-drop", list(data)])
    page.wait_for_selector(SHOWN)
    assert page.inner_text("#u-frame-place") == "1 of 12" and "Video, cine loop" in page.inner_text(".u-facts")
    assert not page.locator(".u-over").count()
    page.evaluate(drop, [".u-foot", list(data)])  # beside the zone it is taken all the same
    page.wait_for_selector(SHOWN)
    assert page.url == page.evaluate("location.href") and page.locator(".u-example").count() >= 5


def test_a_bad_file_is_told_and_the_next_one_works(page, phantom, echo):
    for data, words in ((b"hello", "not an image"), (echo[:20000], "can't be shown"), (b"", "no bytes")):
        upload(page, data, f"{SECRET}.dcm")
        page.wait_for_function("words => document.getElementById('u-error').textContent.includes(words)", arg=words)
        assert SECRET not in page.inner_text("body") and not page.locator(SHOWN).count()
    upload(page, image_bytes(phantom))
    page.wait_for_selector(SHOWN)
    assert not page.inner_text("#u-error") and page.locator("[role=alert]").count() == 1


def test_an_error_is_not_overtaken_by_an_answer_that_was_under_way(page, echo):
    upload(page, echo)
    page.wait_for_selector("#u-result[aria-busy]")
    upload(page, b"")
    page.wait_for_timeout(2500)
    assert page.get_by_role("alert").is_visible() and not page.locator(SHOWN).count()


def test_narrow_pictures_keep_their_shape_under_the_outline(page, phantom):
    tall = np.asarray(Image.fromarray(phantom).resize((40, 600)))
    upload(page, image_bytes(tall))
    page.wait_for_selector(SHOWN)
    fit = page.evaluate("getComputedStyle(document.querySelector('img[data-view=scan]')).objectFit")
    assert fit == "contain"  # as the outline over it, which an SVG fits so


def test_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    reached = []
    for _ in range(40):
        element = page.evaluate(
            "(() => { const e = document.activeElement; return [e.id || e.dataset.example || e.className,"
            "getComputedStyle(e.closest('.u-drop') || e).outlineStyle] })()"
        )
        reached.append(element[0])
        assert element[1] != "none" or element[0] == "u-skip", f"no focus is seen on {element[0]}"
        if element[0] == "heart":
            break
        page.keyboard.press("Tab")
    assert reached == ["u-skip", "u-file", "echo", "heart"]
    page.keyboard.press("Enter")
    page.wait_for_selector(SHOWN)
    assert page.evaluate("document.activeElement.id") == "u-result-title"
    order = []
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["u-save", "u-play", "u-frame"]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#u-frame-place") == "3 of 10"
    assert page.get_attribute("#u-frame", "aria-valuetext") == "3 of 10"
    page.keyboard.press("End")
    assert page.inner_text("#u-frame-place") == "10 of 10"


def test_nothing_sticks_out_at_any_width(app, browser):
    with opened(app, browser, viewport={"width": 1180, "height": 900}) as page:
        page.click("[data-example=heart]")
        page.wait_for_selector(SHOWN)
        for width in (1600, 1180, 1024, 900, 768, 480, 360):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(150)
            outside = page.evaluate(
                "[...document.querySelectorAll('.u-page *')].filter(e => !e.closest('.u-examples') && e.className !== 'u-skip' &&"
                "[e.closest('.u-view, .u-card, .u-loop, .u-drop'), e.closest('.u-page')].some(box => box && box !== e &&"
                "e.getBoundingClientRect().right > box.getBoundingClientRect().right + 1)).map(e => e.outerHTML.slice(0, 90))"
            )
            assert not outside and page.evaluate("document.documentElement.scrollWidth") <= width, width
            used = page.locator(".u-page").bounding_box()["width"]
            assert used >= min(width - 40, 1200)  # Gradio's own frame would take a quarter


def test_every_control_and_picture_has_a_name(page):
    page.click("[data-example=heart]")
    page.wait_for_selector(SHOWN)
    nameless = page.evaluate(
        "[...document.querySelectorAll('.u-page button, .u-page input, .u-page img')].filter(e => e.tagName === 'IMG' ?"
        "!e.hasAttribute('alt') : !(e.textContent.trim() || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert not nameless
    levels = page.evaluate("[...document.querySelectorAll('.u-page :is(h1, h2, h3)')].map(e => Number(e.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels[:-1], levels[1:]))
    # Regions that are read out must be there before they say something; and there is one main part of the page.
    hidden = "['u-status', 'u-error'].filter(id => getComputedStyle(document.getElementById(id)).display === 'none')"
    assert not page.evaluate(hidden) and page.get_by_role("main").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en" and "URFM" in page.title()


def test_narrow_screens(app, browser):
    with opened(app, browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.tap("[data-example=heart]")
        page.wait_for_selector(SHOWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        boxes = [page.locator(f"img[data-view={view}]").bounding_box() for view in ("scan", "tokens", "attention")]
        assert all(200 < box["width"] <= 358 and box["x"] >= 0 for box in boxes)
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
        for control in ("#u-save", "#u-play"):
            assert page.locator(control).bounding_box()["height"] >= 40  # a finger's width
        top = page.locator("#u-result-title").bounding_box()["y"]
        assert 0 <= top < 844 and page.is_visible(".u-badge")


# Contrast of every text that is seen with its ground, as it is drawn: opacity counts too (WCAG 2.2).
PALE = """() => {
  const light = c => { const f = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const colour = text => { const m = text.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (top, share, below) => [0, 1, 2].map(i => top[i] * share + below[i] * (1 - share));
  const texts = [...document.querySelectorAll(".u-page *")].filter(e => e.getBoundingClientRect().width &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return texts.map(e => {
    const chain = []; for (let n = e; n; n = n.parentElement) chain.unshift(getComputedStyle(n));
    let ground = [255, 255, 255], opacity = 1;
    for (const style of chain) {
      const c = colour(style.backgroundColor); ground = over(c, c[3], ground); opacity *= style.opacity; }
    const ink = colour(chain.at(-1).color);
    const pair = [light(over(ink, ink[3] * opacity, ground)), light(ground)].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), e.textContent.slice(0, 40)];
  }).filter(found => found[0] < 4.5); }"""


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_it_follows_the_browser_into_the_dark(app, browser, scheme, dark):
    with opened(app, browser, color_scheme=scheme, viewport={"width": 900, "height": 700}) as page:
        page.click("[data-example=fetus]")
        page.wait_for_selector(SHOWN)
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
        assert (np.median(pixels) < 60) == dark
        assert not page.evaluate(PALE)


def test_nothing_of_an_upload_remains(app, page, phantom):
    sent = []
    page.on("request", lambda request: sent.append(request))
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET)
    content = io.BytesIO()
    Image.fromarray(phantom).save(content, "PNG", pnginfo=text)
    upload(page, content.getvalue(), f"{SECRET}.png")
    page.wait_for_selector(SHOWN)
    (look,) = (request.all_headers() for request in sent if request.url.endswith("/look"))
    # As long as the content: no name stands around it.
    assert look["content-type"] == "application/octet-stream" and look["content-length"] == str(len(content.getvalue()))
    assert not any(SECRET in request.url or SECRET in str(request.all_headers()) for request in sent)
    assert SECRET not in page.content()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")[2] == ""
    assert SECRET not in page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    files = [path for path in app.folder.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() and SECRET not in path.name for path in files)
    assert not [path for path in files if path.suffix in (".png", ".jpg", ".webp", ".dcm")]
    log = app.log.read_text()
    assert SECRET not in log and "POST" not in log and not re.search(r"\d+\.\d+\.\d+\.\d+:\d+ - ", log)


def test_figures(app, browser, tmp_path):
    folder = Path(os.environ.get("URFM_FIGURES") or tmp_path)
    wide, narrow = folder / "space.png", folder / "space_narrow.png"
    with opened(app, browser, viewport={"width": 1180, "height": 900}, color_scheme="light") as page:
        page.click("[data-example=heart]")
        page.wait_for_selector(SHOWN)
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=wide, full_page=True)
    options = {"width": 390, "height": 844}
    with opened(app, browser, viewport=options, device_scale_factor=1.5, color_scheme="dark", is_mobile=True) as page:
        page.click("[data-example=echo]")
        page.wait_for_selector(SHOWN)
        page.locator("#u-frame").fill("12")
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(500)
        page.screenshot(path=narrow)
    for path in (wide, narrow):
        image = Image.open(path).convert("RGB")
        image.save(path, optimize=True)
        assert path.stat().st_size < 400_000 and np.asarray(image).std() > 20


def test_it_ends_when_told_and_leaves_no_temporary_folder(app):
    """The last: the app is gone after it."""
    app.close()
    assert not list((app.folder / "tmp").glob("urfm-space-*")) and not (app.folder / "tmp" / "gradio").exists()
