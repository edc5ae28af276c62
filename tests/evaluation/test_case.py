from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage.io import imsave

from nnunet_godc.evaluation.case import CaseMeasures, CaseProblem, Labels, Options, measure_case
from tests.evaluation.results_folders import SHAPE, segmentation, write_segmentation

PLAIN = Labels({"liver": 1, "tumour": 2}, ignore=None)
REGIONS = Labels({"liver": (1, 2), "tumour": (2,)}, ignore=None)
ALL = Options(lesions=("tumour",))
VOXEL_ML = 2.0 * 1.0 * 0.5 / 1000


def measured(
    folder: Path,
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    labels: Labels = PLAIN,
    options: Options = ALL,
    reader: type[Any] = SimpleITKIO,
    **geometry: Any,
) -> CaseMeasures:
    """Of two files, the prediction with the given geometry."""
    return measure_case(
        write_segmentation(folder / "prediction" / "a.nii.gz", prediction, **geometry),
        write_segmentation(folder / "reference" / "a.nii.gz", reference),
        reader,
        labels,
        options,
    )


def test_a_perfect_prediction(tmp_path: Path):
    measures = measured(tmp_path, segmentation(), segmentation())
    assert measures.voxel_ml == pytest.approx(VOXEL_ML)
    for label in measures.labels.values():
        assert (label.false_positive, label.false_negative) == (0, 0)
        assert label.surface is not None
        assert (label.surface.hd95, label.surface.assd, label.surface.nsd) == (0, 0, 1)
    assert measures.labels["liver"].lesions is None
    [lesion] = measures.labels["tumour"].lesions.reference
    assert (lesion.volume_ml, lesion.dice) == (pytest.approx(18 * VOXEL_ML), 1)


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_counts_are_those_of_nnunet(labels: Labels, ignore: int | None, tmp_path: Path):
    random = np.random.default_rng(0)
    prediction = random.integers(0, 3, SHAPE, dtype=np.uint8)
    reference = random.integers(0, 3 if ignore is None else 4, SHAPE, dtype=np.uint8)
    labels = replace(labels, ignore=ignore)
    measures = measured(tmp_path, prediction, reference, labels=labels, options=Options(surface=False))
    theirs = compute_metrics(
        str(tmp_path / "reference" / "a.nii.gz"),
        str(tmp_path / "prediction" / "a.nii.gz"),
        SimpleITKIO(),
        list(labels.values.values()),
        ignore,
    )["metrics"]
    for name, value in labels.values.items():
        ours = measures.labels[name]
        counts = (ours.true_positive, ours.false_positive, ours.false_negative)
        assert counts == (theirs[value]["TP"], theirs[value]["FP"], theirs[value]["FN"])


def test_distances_are_in_the_millimetres_of_the_header(tmp_path: Path):
    # Two slices of 2 mm further: the faces of the organ's first and last slice are 4 mm apart.
    there, further = segmentation(slice(0, 3), slice(0, 0)), segmentation(slice(2, 5), slice(0, 0))
    surface = measured(tmp_path, further, there, options=Options(nsd_tolerance_mm=4)).labels["liver"].surface
    assert surface.hd95 == pytest.approx(4)
    assert surface.nsd == 1


@pytest.mark.parametrize(("there", "nsd"), [((True, False), 0), ((False, True), 0), ((False, False), np.nan)])
def test_a_missing_surface_has_no_distance(there: tuple[bool, bool], nsd: float, tmp_path: Path):
    prediction, reference = (segmentation() * exists for exists in there)
    surface = measured(tmp_path, prediction, reference).labels["tumour"].surface
    assert [surface.hd95, surface.assd, surface.nsd] == pytest.approx([np.nan, np.nan, nsd], nan_ok=True)


@pytest.mark.parametrize(
    ("prediction", "geometry", "problem"),
    [
        (segmentation()[:-1], {}, "differ in shape, 5 x 8 x 10 and 6 x 8 x 10 voxels"),
        (segmentation(), {"spacing": (2.5, 1, 0.5)}, "differ in spacing, 2.5 x 1 x 0.5 and 2 x 1 x 0.5 mm"),
        (segmentation(), {"origin": (0, 3, 0)}, "lie up to 3 mm apart in space"),
        (segmentation() * 2, {}, "its prediction holds 4, which is not a label in dataset.json"),
        (segmentation() * 0.5, {}, "its prediction holds 0.5, which is not a label"),
        (segmentation() * np.float32(1.0000001), {}, "its prediction holds 1.00000012, which is not a label"),
        (-segmentation().astype(np.int16), {}, "its prediction holds -1, which is not a label"),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    prediction: np.ndarray, geometry: dict[str, Any], problem: str, tmp_path: Path
):
    with pytest.raises(CaseProblem, match=problem):
        measured(tmp_path, prediction, segmentation(), **geometry)


def test_only_the_reference_may_hold_the_ignore_label(tmp_path: Path):
    labels = replace(PLAIN, ignore=3)
    marked = segmentation()
    marked[0] = 3
    measured(tmp_path, segmentation(), marked, labels=labels)
    with pytest.raises(CaseProblem, match="its prediction holds 3"):
        measured(tmp_path, marked, marked, labels=labels)


def test_headers_may_round(tmp_path: Path):
    rounded = {"spacing": (2.0001, 1, 0.5), "origin": (0.001, 0, 0)}
    assert measured(tmp_path, segmentation(), segmentation(), **rounded).labels["liver"].false_positive == 0


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.95])
def test_a_file_that_breaks_off_is_named(share: float, ending: str, reader: type[Any], tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 3, (20, 20, 20), dtype=np.uint8)
    whole = write_segmentation(tmp_path / f"reference{ending}", noise)
    broken = tmp_path / f"prediction{ending}"
    broken.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(CaseProblem, match=rf"its prediction cannot be read \(\w+\): .*prediction{ending}"):
        measure_case(broken, whole, reader, PLAIN, ALL)


def test_other_formats_that_break_off_are_named(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 2, (20, 20, 20), dtype=np.uint8)
    files = {SimpleITKIO: ["a.nrrd", "a.mha", "a.gipl"], Tiff3DIO: ["a.tif"], NaturalImage2DIO: ["a.png"]}
    write_segmentation(tmp_path / "a.nrrd", noise)
    write_segmentation(tmp_path / "a.mha", noise)
    write_segmentation(tmp_path / "a.gipl", noise)
    tifffile.imwrite(tmp_path / "a.tif", noise)
    imsave(tmp_path / "a.png", noise[0], check_contrast=False)
    for reader, names in files.items():
        for name in names:
            broken = tmp_path / f"broken_{name}"
            whole = (tmp_path / name).read_bytes()
            broken.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(CaseProblem, match="its prediction cannot be read"):
                measure_case(broken, tmp_path / name, reader, PLAIN, ALL)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_readers_of_volumes_agree(reader: type[Any], tmp_path: Path):
    prediction, reference = segmentation(slice(1, 4)), segmentation()
    ours = measured(tmp_path, prediction, reference, reader=reader)
    liver, same = ours.labels["liver"], measured(tmp_path, prediction, reference).labels["liver"]
    assert (liver.true_positive, liver.false_negative) == (same.true_positive, same.false_negative)
    assert liver.surface.hd95 == pytest.approx(same.surface.hd95)
    assert liver.surface.assd == pytest.approx(same.surface.assd, rel=0.01)  # a flip turns the mesh's diagonals
    with pytest.raises(CaseProblem, match="apart in space"):
        measured(tmp_path, prediction, reference, reader=reader, origin=(0, 0, 5))


def test_stacks_of_tiff_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, voxels in {"prediction.tif": segmentation(slice(1, 4)), "reference.tif": segmentation()}.items():
        tifffile.imwrite(tmp_path / name, voxels)
    files = (tmp_path / "prediction.tif", tmp_path / "reference.tif")
    measures = measure_case(*files, Tiff3DIO, PLAIN, ALL)
    assert measures.voxel_ml == pytest.approx(1 / 1000)  # without a header, 1 x 1 x 1 mm
    assert measures.labels["liver"].surface.hd95 == pytest.approx(1, abs=0.2)
    assert capsys.readouterr().out == ""


def test_pictures_have_contours_and_stand_for_a_millimetre(tmp_path: Path):
    reference = np.zeros((20, 30), np.uint8)
    reference[5:15, 5:25] = 1
    prediction = np.roll(reference, 3, axis=1)
    for name, pixels in {"prediction.png": prediction, "reference.png": reference}.items():
        imsave(tmp_path / name, pixels, check_contrast=False)
    files = (tmp_path / "prediction.png", tmp_path / "reference.png")
    measures = measure_case(*files, NaturalImage2DIO, Labels({"cell": 1}, None), Options(lesions=("cell",)))
    assert measures.voxel_ml == pytest.approx(1 / 1000)
    assert measures.labels["cell"].surface.hd95 == pytest.approx(3)
    assert measures.labels["cell"].lesions.reference[0].volume_ml == pytest.approx(0.2)


def test_a_volume_of_one_slice_keeps_its_thickness(tmp_path: Path):
    measures = measured(tmp_path, segmentation()[2:3], segmentation()[2:3])
    assert measures.voxel_ml == pytest.approx(VOXEL_ML)
    assert measures.labels["liver"].surface.hd95 == 0


def test_nothing_at_all(tmp_path: Path):
    measures = measured(tmp_path, np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8))
    assert {label.true_positive for label in measures.labels.values()} == {0}
    assert measures.labels["tumour"].lesions.reference == ()
