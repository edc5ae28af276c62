"""The page of a report with 200 cases in its viewer: size on disk, and time to open in headless Chromium.

The worst that a case can be: an image of noise that fills what the viewer takes, and two methods. Four cases recur
under other names: the files of those that recur are copied.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from _measure import load, write_report

import nnunet_godc.report.cases
import nnunet_godc.report.page
from nnunet_godc.evaluation import evaluate
from nnunet_godc.report.page import write_page
from nnunet_godc.report.views import Picture, Task, View, make_view

DATASET, FOLDS, SIDE = "Dataset999_Noise", 5, 100  # 100^3: what the viewer has of a case
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerGODC")
KINDS = 4  # of labels and predictions, which recur
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run"]


def write_study(root: Path, cases: int) -> list[Path]:
    """Folders of results; every case has the same image, linked, since nothing is shared between cases in the page."""
    random = np.random.default_rng(0)
    grid = np.indices((SIDE,) * 3, dtype=np.float32) - SIDE / 2
    image = random.normal(0, 200, (SIDE,) * 3).astype(np.int16)

    def save(voxels: np.ndarray, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        return path

    def blob() -> np.ndarray:
        """Label 1 to the rim that the viewer cuts off 20 mm behind, label 2 within, both with ragged borders."""
        distance = np.sqrt(((grid - random.uniform(-2, 2, 3)[:, None, None, None]) ** 2).sum(0))
        distance += random.normal(0, 1, distance.shape)
        return (distance < 31).astype(np.uint8) + (distance < random.uniform(6, 16))

    raw = root / "raw" / DATASET
    original = save(image, root / "image.nii.gz")
    pool = [[save(blob(), root / f"{part}-{kind}.nii.gz") for kind in range(KINDS)] for part in ("label", *TRAINERS)]
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    plans = {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {},
    }
    folders = [root / "results" / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" for trainer in TRAINERS]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(description))
        (folder / "plans.json").write_text(json.dumps(plans))
    for number in range(cases):
        name = f"case_{number:03d}"
        validation = f"fold_{number % FOLDS}/validation"
        for source, target in (
            (original, raw / "imagesTr" / f"{name}_0000.nii.gz"),
            (pool[0][number % KINDS], raw / "labelsTr" / f"{name}.nii.gz"),
            *(
                (pool[1 + i][number % KINDS], folder / validation / f"{name}.nii.gz")
                for i, folder in enumerate(folders)
            ),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(source)
    return folders


made: dict[str, View] = {}


def viewed(task: Task) -> View:
    """As `make_view`, of a case that came before by copying what was written for it."""
    first = f"{int(task.name.removeprefix('case_')) % KINDS}, {task.shown}"
    if first not in made:
        made[first] = make_view(task)
        return made[first]
    own = made[first]

    def copied(name: str) -> str:
        target = task.key + name.removeprefix(own.key)
        shutil.copyfile(task.folder / name, task.folder / target)
        return target

    pictures = {
        label: Picture(copied(picture.large), copied(picture.small), picture.size)
        for label, picture in own.pictures.items()
    }
    return View(task.key, pictures, copied(own.volume), own.has_image)


def opened(page: Path, rounds: int) -> list[dict[str, float]]:
    """Seconds until the page is there, and until its first chart is drawn, each time in a new browser; and the CPU time
    that the page's main thread had taken by then."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as started:
        for _ in range(rounds):
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            meter = tab.context.new_cdp_session(tab)
            meter.send("Performance.enable", {"timeDomain": "threadTicks"})
            before = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            there = time.perf_counter() - before
            tab.locator("figure.chart .main-svg").first.wait_for()
            drawn = time.perf_counter() - before
            metrics = {entry["name"]: entry["value"] for entry in meter.send("Performance.getMetrics")["metrics"]}
            tab.locator("nav a[href='#cases']").click()
            tab.locator(".card img").first.wait_for()
            assert tab.locator(".card").count() > 0
            found.append({"page_s": there, "first_chart_s": drawn, "cpu_s": metrics["TaskDuration"]})
            browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="of opening the page")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    arguments.device = "cpu"
    # by itself a report chooses few of a kind
    nnunet_godc.report.cases.WORST = arguments.cases
    nnunet_godc.report.page.make_view = viewed
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders = write_study(root, arguments.cases)
        os.environ["nnUNet_raw"] = str(root / "raw")
        os.environ.pop("nnUNet_preprocessed", None)
        evaluation = evaluate(
            folders, root / "page", metrics=["overlap"], resamples=1000, workers=2, baseline=TRAINERS[0]
        )
        page = write_page(evaluation, root / "page", baseline=TRAINERS[0], cases=2 * arguments.cases, workers=0)
        sizes: dict[str, float] = {"page": (page.path).stat().st_size}
        for file in (page.path.parent / "cases").iterdir():
            kind = "volumes" if file.suffix == ".js" else "pictures"
            sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
        sizes["all"] = sum(file.stat().st_size for file in page.path.parent.rglob("*") if file.is_file())
        arguments.load = load()
        times = opened(page.path, arguments.rounds)
    measured: dict[str, Any] = {"cases": page.cases, "bytes": sizes, "opened": times}
    print(measured, flush=True)

    def spread(name: str) -> str:
        values = [entry[name] for entry in times]
        return f"{statistics.median(values):.2f} s | {min(values):.2f} to {max(values):.2f} s"

    write_report(
        "report_page",
        __doc__.splitlines()[0],
        [
            "| what | median or size | spread |",
            "| --- | ---: | ---: |",
            f"| cases in the viewer | {page.cases} | |",
            *(f"| {kind} on disk | {size / 1e6:.1f} MB | |" for kind, size in sizes.items()),
            f"| the page is there | {spread('page_s')} |",
            f"| its first chart is drawn | {spread('first_chart_s')} |",
            f"| CPU time of the page's main thread until then | {spread('cpu_s')} |",
        ],
        [measured],
        arguments,
        [f"{arguments.rounds} openings from disk, each in a new browser; images of noise, two methods, two labels"],
    )


if __name__ == "__main__":
    main()
