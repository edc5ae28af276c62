import nibabel
import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_godc.demo.figure import draw_case, most_conspicuous_slice
from nnunet_godc.demo.phantom import make_phantom


@pytest.fixture(params=["RAS", "LPI"])
def case(request, tmp_path):
    phantom = make_phantom(0, shape=(48, 40, 20), spacing=(7.2, 7.2, 10.0)).reoriented(request.param)
    paths = []
    for name, voxels in (
        ("image", phantom.image),
        ("reference", phantom.labels),
        ("prediction", np.minimum(phantom.labels, 1)),
    ):
        paths.append(tmp_path / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(voxels, phantom.affine), paths[-1])
    return paths


def draw(case, out):
    draw_case(*case, out, title="phantom_000, held out", score="liver Dice 0.90")
    return imread(out)[..., :3]


def test_a_picture_is_written_and_not_blank(case, tmp_path):
    picture = draw(case, tmp_path / "case.png")
    assert picture.shape[1] > 2 * picture.shape[0]  # three panels beside each other
    assert picture.std() > 0.2
    assert (tmp_path / "case.png").stat().st_size < 200_000


def test_reference_and_prediction_are_drawn_in_colour_and_the_image_is_not(case, tmp_path):
    picture = draw(case, tmp_path / "case.png")
    body = picture[: int(0.85 * picture.shape[0])]  # the legend below is coloured too
    coloured = np.ptp(body, axis=2) > 0.3
    thirds = [third.sum() for third in np.array_split(coloured, 3, axis=1)]
    assert thirds[0] == 0
    assert thirds[1] > 0
    assert thirds[2] > 0


def test_only_the_reference_shows_a_tumour_that_was_missed(case, tmp_path):
    picture = draw(case, tmp_path / "case.png")
    body = picture[: int(0.85 * picture.shape[0])]
    orange = (body[..., 0] - body[..., 2] > 0.4).astype(int)
    _, reference, prediction = (third.sum() for third in np.array_split(orange, 3, axis=1))
    assert reference > 0
    assert prediction == 0


def test_the_picture_does_not_depend_on_the_stored_orientation(tmp_path):
    phantom = make_phantom(0, shape=(48, 40, 20), spacing=(7.2, 7.2, 10.0))
    pictures = []
    for codes in ("RAS", "LPI"):
        turned = phantom.reoriented(codes)
        paths = [tmp_path / f"{codes}_{name}.nii.gz" for name in ("image", "labels")]
        nibabel.save(nibabel.Nifti1Image(turned.image, turned.affine), paths[0])
        nibabel.save(nibabel.Nifti1Image(turned.labels, turned.affine), paths[1])
        pictures.append(draw([paths[0], paths[1], paths[1]], tmp_path / f"{codes}.png"))
    np.testing.assert_array_equal(*pictures)


def test_the_slice_with_most_tumour_is_shown_and_without_tumour_that_with_most_liver():
    labels = np.zeros((4, 4, 3), dtype=np.uint8)
    labels[:, :, 0] = 1
    labels[0, 0, 1] = 1
    assert most_conspicuous_slice(labels) == 0
    labels[1, 1, 2] = 2
    assert most_conspicuous_slice(labels) == 2
