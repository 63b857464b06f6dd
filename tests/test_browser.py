"""The report in a real browser, at the size of a phone and of a desktop, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from premeditate.viewer.report import render, render_run
from sample_traces import PLAN, Memory, sample

pytestmark = pytest.mark.browser
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = ((360, 740), (390, 844), (1280, 900))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium, args=list(QUIET))
        yield running
        running.close()


@contextmanager
def opened(browser: Any, file: Path, size: tuple[int, int], **options: Any) -> Iterator[Any]:
    """The page, with a list of everything that went wrong or went out; it must be empty in the end."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    memory = Memory()
    hostile = "<script>document.title='owned'</script> " + "Donaudampfschifffahrtsgesellschaftskapitän" * 6
    traces = {
        "one": sample(memory, trace_id="one"),
        "many": sample(
            memory,
            chains=(("remove the red star at b3", PLAN), ("make the red star at b3 small",) * 4, (PLAN,)),
            trace_id="many",
        ),
        "step": sample(
            memory,
            chains=(("remove the red star at b3 then paint the orange circle at a2 green",),),
            trace_id="step",
            instruction=hostile,
            stepwise=True,
        ),
    }
    photo = Memory()
    before = Image.linear_gradient("L").resize((1600, 900)).convert("RGB")
    traced = sample(photo, trace_id="photo")
    photo.images = {name: before.rotate(5 * i) for i, name in enumerate(photo.images)}
    files = {name: folder / f"{name}.html" for name in (*traces, "photo", "index")}
    for name, trace in traces.items():
        files[name].write_text(render(trace, memory), encoding="utf-8")
    files["photo"].write_text(render(traced, photo), encoding="utf-8")
    files["index"].write_text(render_run(memory), encoding="utf-8")
    return files


@pytest.mark.parametrize("name", ["one", "many", "step", "photo", "index"])
def test_opens_without_error_request_or_overflow(browser: Any, pages: dict[str, Path], name: str) -> None:
    for size in SIZES:
        with opened(browser, pages[name], size, color_scheme="dark" if size[0] == 390 else "light") as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.title() != "owned"


def test_slider_obeys_keyboard_and_pointer(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"], (390, 844)) as page:
        slider = page.get_by_role("slider")

        def clip() -> str:
            return str(page.locator(".after").first.evaluate("e => getComputedStyle(e).clipPath"))

        start = int(slider.input_value())
        assert f"{start}%" in clip()
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert slider.input_value() == str(start + 1)
        assert f"{start + 1}%" in clip()
        assert slider.get_attribute("aria-valuetext") == f"{start + 1} % before, {99 - start} % after"
        page.keyboard.press("Home")
        assert slider.input_value() == "0"
        page.keyboard.press("End")
        assert "100%" in clip()
        box = slider.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
        assert 20 <= int(slider.input_value()) <= 30


def test_dark_and_light_are_readable(browser: Any, pages: dict[str, Path]) -> None:
    """Contrast of every visible text with its background is at least 4.5 (WCAG AA)."""
    script = """() => {
      const parse = (c) => c.match(/[\\d.]+/g).map(Number);
      const lum = ([r, g, b]) => { const f = (v) => { v /= 255;
          return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 };
        return .2126 * f(r) + .7152 * f(g) + .0722 * f(b) };
      const poor = [];
      for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
        if (e.closest(".sr, .skip, script, style, details:not([open]) pre, .missing")) continue;
        let back = e; let ground;
        for (; back; back = back.parentElement) {
          ground = parse(getComputedStyle(back).backgroundColor);
          if ((ground[3] ?? 1) === 1) break;
        }
        const a = lum(parse(getComputedStyle(e).color)), b = lum(ground);
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < 4.5) poor.push(e.className + " " + e.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
      }
      return poor; }"""
    for scheme in ("light", "dark"):
        for name in ("many", "index"):
            with opened(browser, pages[name], (1280, 900), color_scheme=scheme) as page:
                assert page.evaluate(script) == []


def test_index_finds_and_filters(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["index"], (390, 844)) as page:
        assert page.locator(".entry:visible").count() == 3
        page.get_by_role("searchbox").fill("odd one out")
        assert page.locator(".entry:visible").count() == 2
        page.get_by_role("searchbox").fill("")
        page.get_by_role("combobox").select_option("unverified")
        assert page.locator(".entry:visible").count() == 1
        assert page.get_by_role("status").inner_text() == "1 shown"


def test_prints_without_controls(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["one"], (1280, 900)) as page:
        page.emulate_media(media="print")
        assert not page.get_by_role("slider").is_visible()
        assert page.locator(".stage .after").is_visible()
        assert len(page.pdf()) > 10_000
