"""The pictures of docs/explain.md, out of a folder that `nnunet-godc explain` has written for lung nodules."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[2] / "docs"
COLOURS = 128  # of a picture: a third of the size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("explained", type=Path, help="folder that nnunet-godc explain has written")
    parser.add_argument("--offsets", default="offsets-0.png", help="the picture of offsets to show")
    arguments = parser.parse_args()
    shutil.copyfile(arguments.explained / arguments.offsets, DOCS / "explain-offsets.png")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1150, "height": 1400}, color_scheme="light")
        page.goto((arguments.explained / "index.html").absolute().as_uri())
        chart = page.locator("figure.chart").first
        chart.locator(".main-svg").first.wait_for(timeout=120_000)
        page.wait_for_timeout(1000)
        part = page.locator(".part").first.bounding_box()
        end = chart.bounding_box()
        clip = {**part, "height": end["y"] + end["height"] - part["y"]}
        page.screenshot(path=DOCS / "explain.png", clip=clip)
        browser.close()
    for name in ("explain.png", "explain-offsets.png"):
        Image.open(DOCS / name).convert("RGB").quantize(COLOURS).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main()
