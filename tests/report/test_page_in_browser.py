"""The page in a browser: what a user sees and does, from disk and served, without a request to anywhere else."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from nnunet_godc.report.page import write_inside_page
from nnunet_godc.report.serve import address_of, server_of
from tests.report.conftest import HOSTILE_CASE, HOSTILE_LABEL, Study, hostile_explanation

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

NONE = "\N{EN DASH}"
# Chromium on a machine without GPU and network, possibly as root; the others keep it from calling home.
ARGUMENTS = [
    *("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, study: Study) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end, nothing was complained about, nothing asked for elsewhere, nothing injected."""
    complaints: list[str] = []
    pages = []

    def open_page(part: str = "overview", address: str = "", width: int = 1280, **how: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **how)
        own = address or study.page.path.as_uri().removesuffix("index.html")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on(
            "request",
            lambda request: None if request.url.startswith((own, "data:", "blob:")) else complaints.append(request.url),
        )
        page.goto(f"{own}index.html#{part}")
        page.set_default_timeout(60_000)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.close()
    assert complaints == []


def until(page: Any, condition: str) -> None:
    """Waits until JavaScript says true; Playwright's own way is an `eval`, which the page forbids."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"waited in vain for {condition}")


def drawn(page: Any) -> None:
    """Waits for all charts: each is drawn when it comes into view."""
    for figure in page.locator("figure.chart:visible").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()


def test_charts_are_drawn_with_the_methods_of_the_study(opened: Callable[..., Any]) -> None:
    page = opened()
    drawn(page)
    titles = page.locator("figure.chart h3").all_inner_texts()
    kinds = (
        "Difference from",
        "Seed against seed",
        "Dice by volume",
        "Share that was found",
        "case by case",
        "all cases",
    )
    for kind in (*kinds, "Training curves"):
        assert any(kind in title for title in titles), kind
    points = (
        "[...document.querySelectorAll('.panel')].flatMap((panel) => panel.data.flatMap((trace) => trace.y)).length"
    )
    assert page.evaluate(points) > 200
    assert page.locator("table caption").first.inner_text().endswith("[95 % interval].")
    paired = page.locator("figure.chart", has_text="case by case")
    before = paired.locator("h3").inner_text()
    paired.locator("select").select_option(index=1)
    assert paired.locator("h3").inner_text() != before


def test_a_resumed_training_is_marked(opened: Callable[..., Any]) -> None:
    page = opened()
    figure = page.locator("figure.chart", has_text="Training curves")
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    marks = figure.locator(".panel").first.evaluate("(panel) => panel.data.filter((trace) => trace.mode === 'markers')")
    assert [mark["x"] for mark in marks] == [[2]]
    assert "resumed" in marks[0]["text"][0]


def test_the_table_sorts_and_filters(opened: Callable[..., Any]) -> None:
    page = opened("cases")

    def column(name: str) -> list[str]:
        names = page.locator("#table thead th").all_inner_texts()
        return page.locator(f"#table tbody td:nth-child({names.index(name) + 1})").all_inner_texts()

    def numbers() -> list[float]:
        return [float(text) for text in column("Dice (%)") if text != NONE]

    assert page.locator("#count").inner_text() == "112 of 112 rows"
    heading = page.get_by_role("columnheader", name="Dice (%)")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert numbers() == sorted(numbers())
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True)
    assert column("Dice (%)")[0] != NONE
    page.get_by_label("Label").select_option("liver")
    assert page.locator("#count").inner_text() == "56 of 112 rows"
    page.get_by_label("Case contains").fill("CASE_05")
    assert set(column("Case")) == {"case_05"}
    page.get_by_label("Dice from (%)").fill("100.5")
    assert page.locator("#count").inner_text() == "0 of 112 rows"


def test_names_with_markup_stay_text(opened: Callable[..., Any]) -> None:
    page = opened("cases")
    page.get_by_label("Case contains").fill("onerror")
    assert page.locator("#table tbody td button").first.inner_text() == HOSTILE_CASE
    page.locator("#table tbody td button").first.click()
    assert HOSTILE_CASE in page.locator("#case-title").inner_text()
    assert HOSTILE_LABEL in page.locator("#case-body").inner_text()
    page.keyboard.press("Escape")
    page.goto(page.url.replace("#cases", "#overview"))
    drawn(page)


def test_the_inside_of_the_method_is_a_part_of_the_report(opened: Callable[..., Any]) -> None:
    page = opened("inside")
    check_inside(page)
    figure = page.locator("figure.chart", has_text="Gradient per voxel")
    figure.locator("select").select_option(HOSTILE_LABEL)
    lines = figure.locator(".panel").evaluate("(panel) => panel.data.filter((trace) => trace.mode === 'lines').length")
    assert lines == 4


def test_the_page_of_explain_opens_alone(browser: Any, opened: Callable[..., Any], tmp_path: Path) -> None:
    path = write_inside_page(hostile_explanation(), tmp_path)
    page = opened("", address=path.as_uri().removesuffix("index.html"), width=400)
    assert page.locator("nav a").all_inner_texts() == ["Inside the method"]
    check_inside(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def check_inside(page: Any) -> None:
    """Charts, tables and pictures are there, and a hostile name is text."""
    assert page.locator("nav a[aria-current=page]").inner_text() == "Inside the method"
    drawn(page)
    titles = page.locator("#inside figure.chart h3").all_inner_texts()
    assert titles == [
        "Gradient per voxel by the size of the object",
        "Weights of the objects of a batch",
        "How far samples are moved",
        "Each case with and without offsets",
    ]
    assert HOSTILE_LABEL in page.locator("#inside").inner_text()
    picture = page.locator("#inside .pictures img")
    picture.scroll_into_view_if_needed()
    assert HOSTILE_CASE in picture.get_attribute("alt")
    until(page, "[...document.querySelectorAll('.pictures img')].every((image) => image.naturalWidth === 40)")


def test_everything_is_reached_and_named_without_a_mouse(opened: Callable[..., Any]) -> None:
    page = opened("")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_role("link", name="Cases").focus()
    page.keyboard.press("Enter")
    page.locator("nav a[aria-current=page]", has_text="Cases").wait_for()
    page.get_by_role("columnheader", name="Recall (%)").get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("columnheader", name="Recall (%)").get_attribute("aria-sort") == "ascending"
    page.locator("#table tbody button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [role=img], img, table, nav, form")].filter(
            (element) => !(element.getAttribute("aria-label") || element.labels?.length || element.textContent.trim()
                || element.querySelector("caption") || element.hasAttribute("alt")))
            .map((element) => element.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(theme: str, opened: Callable[..., Any]) -> None:
    page = opened(color_scheme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    pairs = page.evaluate(
        """() => ["p.muted", "h1", "td", "thead th", "nav a", "summary"].map((selector) => {
            const element = document.querySelector("#overview " + selector) || document.querySelector(selector);
            let behind = element;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        })"""
    )

    def luminance(colour: str) -> float:
        parts = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for pair in pairs:  # as WCAG 2 asks for, level AA
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") != theme


@pytest.mark.parametrize("width", [400, 768, 2560])
def test_nothing_is_wider_than_the_screen(width: int, opened: Callable[..., Any]) -> None:
    page = opened(width=width)
    drawn(page)
    for part in ("overview", "cases", "inside", "notes"):
        page.locator(f"nav a[href='#{part}']").click()
        page.locator(f"nav a[href='#{part}'][aria-current=page]").wait_for()
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_works_served_as_well(opened: Callable[..., Any], study: Study) -> None:
    with server_of(study.page.path.parent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            page = opened(address=address_of(server))
            drawn(page)
            open_viewer(page)
        finally:
            server.shutdown()


def open_viewer(page: Any) -> str:
    """Opens the first case in the viewer, and returns the case's name."""
    page.locator("nav a[href='#cases']").click()
    page.locator(".card").first.click()
    page.get_by_role("button", name="Open the viewer").click()
    page.locator(".viewer canvas").wait_for()
    until(page, "window.nnunetGodcReport.viewer()?.volumes.length === 3")
    title: str = page.locator("#case-title").inner_text()
    return title.split(", ")[0]


def test_the_viewer_shows_the_label_where_it_is(opened: Callable[..., Any], study: Study) -> None:
    page = opened(width=1000)
    case = open_viewer(page)
    path = study.raw / "labelsTr" / f"{case}.nii.gz"
    reference: Any = nibabel.load(path)
    voxels = np.asarray(reference.dataobj)
    label = 2 if HOSTILE_LABEL in page.locator("#case-title").inner_text() else 1
    # only the reference, opaque, on one axial plane through it
    page.get_by_role("checkbox", name="Prediction").uncheck()
    page.get_by_role("slider", name="Opacity").fill("1")
    page.get_by_role("combobox", name="Planes").select_option("axial")
    at = np.argwhere(voxels == label)[len(np.argwhere(voxels == label)) // 2]
    mm = nibabel.affines.apply_affine(reference.affine, at)
    page.evaluate(
        """(mm) => {
            const own = nnunetGodcReport.viewer();
            own.scene.crosshairPos = own.mm2frac(mm);
            Object.assign(own.opts, { crosshairWidth: 0, isOrientationTextVisible: false });
            own.drawScene();
        }""",
        mm.tolist(),
    )
    until(page, "nnunetGodcReport.viewer().volumes.length === 2")
    page.wait_for_timeout(500)
    canvas = page.locator(".viewer canvas")
    picture = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
    size = canvas.evaluate("(canvas) => [canvas.width, canvas.height]")
    height, width, _ = picture.shape
    places = np.random.default_rng(0).uniform((0, 0), (width, height), (3000, 2))
    found = page.evaluate(
        """([places, scale]) => { const own = nnunetGodcReport.viewer(); return places.map(([x, y]) => {
            const frac = own.canvasPos2frac([x * scale[0], y * scale[1]]);
            return frac[0] < 0 ? null : [...own.frac2mm(frac)].slice(0, 3); }); }""",
        [places.tolist(), [size[0] / width, size[1] / height]],
    )
    inverse = np.linalg.inv(reference.affine)
    agree, inside = [], 0
    for (x, y), place in zip(places.astype(int), found, strict=True):
        if place is None:
            continue
        index = nibabel.affines.apply_affine(inverse, place)
        nearest = np.rint(index).astype(int)
        if (
            np.any(np.abs(np.abs(index - nearest)[:2] - 0.5) < 0.1)
            or np.any(nearest < 0)
            or np.any(nearest >= voxels.shape)
        ):
            continue  # on the edge between two voxels
        is_label = bool(voxels[tuple(nearest)] == label)
        red, _, blue = picture[y, x]
        agree.append((blue - red > 60) == is_label)
        inside += is_label
    assert inside >= 50
    assert len(agree) - inside >= 50
    assert np.mean(agree) >= 0.99
