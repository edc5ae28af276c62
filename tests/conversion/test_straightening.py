"""Tilted and uneven series, with masks that were drawn on them."""

import numpy as np
import pytest

from nnunet_godc.conversion.case import CaseSettings, CaseSource, convert_case
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.problems import CaseError
from tests.conversion.dicom_files import make_grid, write_segmentation, write_series, write_structure_set
from tests.dataset_conversion.layouts import read_back

SETTINGS = CaseSettings(LabelMap({1: "tumour"}, segments=(("tumour", 1),)), "physical", resample_series=True)
GRID = make_grid((40, 36, 20), spacing=(1.0, 1.0, 2.0))
CENTRE, RADIUS = np.array([0.0, 28.0, -280.0]), 9.0


def distance(positions):
    """From the centre of a ball, mm, in space: what a scanner sees, however its slices lie."""
    return np.linalg.norm(positions - CENTRE, axis=-1)


def intensity(positions):
    """A ball that fades out, so that it can be interpolated."""
    return np.rint(np.clip(100 - 12 * (distance(positions) - RADIUS), -1000, 200))


@pytest.fixture(params=["tilted", "gap"])
def series(request, tmp_path):
    """Slices of the ball with a gantry tilt of 15 degrees, or without two of them; their positions in space."""
    kept = [k for k in range(20) if request.param == "tilted" or k not in (9, 15)]
    moved = np.zeros((20, 3))
    if request.param == "tilted":
        moved[:, 1] = 2.0 * np.arange(20) * np.tan(np.radians(15)) - 5
    i, j = np.meshgrid(np.arange(40), np.arange(36), indexing="ij")
    places = [
        (GRID.affine @ np.stack([i, j, np.full_like(i, k), np.ones_like(i)], axis=-1)[..., None])[..., :3, 0] + moved[k]
        for k in range(20)
    ]
    voxels = np.stack([intensity(place) for place in places], axis=-1).astype(np.int16)

    def change(dataset, k):
        dataset.ImagePositionPatient = [float(x) for x in places[k][0, 0]]

    files = write_series(tmp_path / "ct", voxels, GRID, change=change, dtype="<i2", intercept=0)
    for k in set(range(20)) - set(kept):
        files[k].unlink()
    return tmp_path, [files[k] for k in kept], [places[k] for k in kept]


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_image_and_mask_lie_where_the_scanner_saw_them(series, kind, orientation):
    root, files, places = series
    mask = root / "mask.dcm"
    if kind == "SEG":
        inside = np.stack([distance(place) <= RADIUS for place in places], axis=-1)
        write_segmentation(mask, files, {"tumour": inside})
    else:
        angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
        contours = []
        for height in (place[0, 0, 2] for place in places):
            radius = np.sqrt(max(0.0, RADIUS**2 - (height - CENTRE[2]) ** 2))
            if radius > 1:
                around = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.zeros(90)], axis=-1)
                contours.append(around + np.array([CENTRE[0], CENTRE[1], height]))
        write_structure_set(mask, files, {"tumour": contours})
    out = root / "out"
    for part in ("imagesTr", "labelsTr"):
        (out / part).mkdir(parents=True)
    source = CaseSource("case", root / "ct", mask)
    settings = SETTINGS.__class__(**{**SETTINGS.__dict__, "orientation": orientation})
    with pytest.raises(CaseError, match="--resample-series"):
        convert_case(source, settings.__class__(**{**settings.__dict__, "resample_series": False}), root, out)
    record = convert_case(source, settings, root, out)
    image, label = (read_back(out / record[part]["file"]) for part in ("image", "label"))
    assert image.grid == label.grid
    assert image.grid.orientation == orientation
    assert image.grid.spacing == pytest.approx((1.0, 1.0, 2.0))
    assert "resampled together" in record["warnings"][0]
    indices = np.indices(image.grid.shape).reshape(3, -1)
    positions = (image.grid.affine[:3, :3] @ indices + image.grid.affine[:3, 3:]).T
    inside = distance(positions) <= RADIUS
    found = label.voxels.ravel() == 1
    assert 2 * np.count_nonzero(inside & found) / (inside.sum() + found.sum()) > 0.94
    near = np.abs(distance(positions) - RADIUS) < 4
    assert np.abs(image.voxels.ravel()[near] - intensity(positions[near])).mean() < 5


def test_other_masks_than_dicom_are_refused_on_such_a_series(series, nifti):
    root, _, _ = series
    label = nifti(root / "label.nii", np.zeros((40, 36, 20), np.uint8))
    with pytest.raises(CaseError, match="only masks in DICOM"):
        convert_case(CaseSource("case", root / "ct", label), SETTINGS, root, root)
