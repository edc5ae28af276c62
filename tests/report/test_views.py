from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from nnunet_godc.report import views
from nnunet_godc.report.views import Task, make_view

SHAPE = (16, 20, 24)  # x, y, z
AXES = {"RAS": np.diag([2.0, 1.0, 3.0, 1.0]), "LPS": np.diag([-2.0, -1.0, 3.0, 1.0])}
AXES["PIR"] = np.array([[0, 0, 3.0, 5], [-2.0, 0, 0, 6], [0, -1.0, 0, 7], [0, 0, 0, 1]])


def write(folder: Path, affine: np.ndarray, reader: type[Any] = NibabelIO) -> Task:
    """A box of 3 x 4 x 5 voxels with a prediction that lacks a corner of it, and adds a voxel far away."""
    reference = np.zeros(SHAPE, np.uint8)
    reference[4:7, 8:12, 10:15] = 2
    prediction = reference.copy()
    prediction[4, 8:10, 10:12] = 0
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    for name, voxels in (("image", image), ("reference", reference), ("prediction", prediction)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    return Task(
        key="000-case",
        name="case $1$",
        image=folder / "image.nii.gz",
        reference=folder / "reference.nii.gz",
        predictions=[(1, "GODC $x", folder / "prediction.nii.gz")],
        reader=reader,
        labels={"liver": (1, 2), "tumour": 2},
        ignore=None,
        shown=["tumour"],
        window=None,
        scores={("tumour", 1): "Dice 90.0 %"},
        folder=folder,
    )


def content(folder: Path) -> dict[str, Any]:
    text = (folder / "000-case.js").read_text()
    prefix = 'nnunetGodcReport.volume("000-case", '
    assert text.startswith(prefix)
    found: dict[str, Any] = json.loads(text[len(prefix) :].removesuffix(");\n"))
    return found


def unpacked(packed: str, size: list[int]) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(packed)), np.uint8).reshape(size, order="F")


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("reader", [NibabelIO, SimpleITKIO])
def test_voxels_lie_in_the_viewer_where_they_lie_in_the_file(axes: str, reader: type[Any], tmp_path: Path) -> None:
    view = make_view(write(tmp_path, AXES[axes], reader))
    assert view.problem == ""
    found = content(tmp_path)
    header: Any = nibabel.Nifti1Header(base64.b64decode(found["header"])[:348])
    assert nibabel.aff2axcodes(header.get_best_affine()) == ("R", "A", "S")
    original: Any = nibabel.load(tmp_path / "reference.nii.gz")
    image: Any = nibabel.load(tmp_path / "image.nii.gz")
    reference = unpacked(found["reference"], found["size"])
    assert np.count_nonzero(reference) == 3 * 4 * 5
    slope, inter = header.get_slope_inter()
    levels = unpacked(found["image"], found["size"]) * slope + inter
    places = np.argwhere(np.ones(found["size"]))
    affine = np.linalg.inv(original.affine) @ header.get_best_affine()
    there = tuple(np.rint(nibabel.affines.apply_affine(affine, places)).astype(int).T)
    np.testing.assert_array_equal(reference[tuple(places.T)], np.asarray(original.dataobj)[there])
    # the percentiles at either end are cut off
    tolerance = slope + 0.02 * np.ptp(levels)
    np.testing.assert_allclose(levels[tuple(places.T)], np.asarray(image.dataobj)[there], rtol=0, atol=tolerance)


def test_the_point_that_is_shown_lies_within_the_largest_error(tmp_path: Path) -> None:
    make_view(write(tmp_path, AXES["RAS"]))
    found = content(tmp_path)
    point = tuple(found["point"])
    assert unpacked(found["reference"], found["size"])[point] == 2
    assert unpacked(found["predictions"][0]["voxels"], found["size"])[point] == 0


def test_a_picture_is_in_proportion_and_a_small_one_beside_it(tmp_path: Path) -> None:
    view = make_view(write(tmp_path, AXES["RAS"]))
    picture = view.pictures["tumour"]
    assert Image.open(tmp_path / picture.large).size == pytest.approx(picture.size, abs=1)
    small = np.asarray(Image.open(tmp_path / picture.small).convert("RGB")).astype(int)
    blue = (small[..., 2] - small[..., 0]) > 80
    orange = (small[..., 0] - small[..., 2]) > 80
    assert blue.any()
    assert orange.any()
    rows, columns = (np.flatnonzero((blue | orange).any(axis=axis)) for axis in (1, 0))
    # the label is 3 voxels of 2 mm wide and 4 voxels of 1 mm high
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(6 / 4, rel=0.15)


def test_large_cases_are_made_smaller_and_no_lesion_gets_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_VOXELS", 1000)
    task = write(tmp_path, AXES["RAS"])
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1, 1, 1] = voxels[14, 18, 22] = 2
    nibabel.save(nibabel.Nifti1Image(voxels, AXES["RAS"]), task.predictions[0][2])
    assert make_view(task).problem == ""
    found = content(tmp_path)
    assert np.prod(found["size"]) <= 1000
    assert found["step"] > 1
    header: Any = nibabel.Nifti1Header(base64.b64decode(found["header"])[:348])
    places = np.argwhere(unpacked(found["predictions"][0]["voxels"], found["size"]))
    mm = nibabel.affines.apply_affine(header.get_best_affine(), places)
    np.testing.assert_allclose(mm, [[2, 1, 3], [28, 18, 66]], atol=found["step"] * 1.5)


def test_a_case_of_the_usual_size_takes_less_than_two_and_a_half_megabytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    reference = np.zeros((140, 140, 76), np.uint8)
    reference[20:120, 20:120, 20:56] = 1
    image = random.normal(0, 20, reference.shape).astype(np.float32)  # noise, which nothing compresses
    for name, voxels in (("image", image), ("reference", reference), ("prediction", reference)):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    task = write(tmp_path, np.eye(4))
    from dataclasses import replace

    paths = {name: tmp_path / f"{name}.nii" for name in ("image", "reference")}
    task = replace(
        task, **paths, predictions=[(0, "A", tmp_path / "prediction.nii")], labels={"liver": 1}, shown=["liver"]
    )
    view = make_view(task)
    assert view.problem == ""
    names = [view.volume, *view.pictures["liver"][:2]]
    assert sum((tmp_path / name).stat().st_size for name in names) < 2.5e6  # 200 of them stay below 500 MB


def test_without_an_image_there_are_labels_alone(tmp_path: Path) -> None:
    from dataclasses import replace

    view = make_view(replace(write(tmp_path, AXES["RAS"]), image=None))
    assert view.problem == ""
    assert not view.has_image
    assert content(tmp_path)["hasImage"] is False
    assert (tmp_path / view.pictures["tumour"].large).exists()


def test_an_image_that_is_none_is_a_problem_of_its_case(tmp_path: Path) -> None:
    task = write(tmp_path, AXES["RAS"])
    (tmp_path / "image.nii.gz").write_bytes(b"no image")
    assert "its image cannot be read" in make_view(task).problem
    SimpleITK.WriteImage(SimpleITK.Image(3, 3, 3, SimpleITK.sitkFloat32), str(tmp_path / "image.nii.gz"))
    assert "image and reference differ in shape" in make_view(task).problem
