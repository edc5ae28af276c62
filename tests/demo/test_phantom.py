import nibabel
import numpy as np
import pytest
from scipy import ndimage

from nnunet_godc.demo.phantom import LIVER, TUMOUR, make_phantom

SMALL = {"shape": (48, 40, 20), "spacing": (7.2, 7.2, 10.0)}


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, lesion_radii=(4.0, 12.0, 30.0))


def test_the_same_seed_gives_the_same_patient():
    first, second, other = (make_phantom(seed, **SMALL) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.affine, second.affine)
    assert (first.labels != other.labels).any()


def test_arrays_have_the_types_that_ct_files_have(phantom):
    assert phantom.image.dtype == np.int16
    assert phantom.labels.dtype == np.uint8
    assert phantom.image.shape == phantom.labels.shape == (96, 80, 40)
    assert phantom.image.min() >= -1024


def test_attenuation_is_that_of_ct(phantom):
    liver = phantom.image[ndimage.binary_erosion(phantom.labels == LIVER)]
    assert 60 <= liver.mean() <= 105
    assert 5 <= liver.std() <= 20
    tumour = phantom.image[ndimage.binary_erosion(phantom.labels == TUMOUR)]
    assert 15 <= liver.mean() - tumour.mean() <= 55
    assert abs(np.median(phantom.image[0]) + 1000) < 10  # beside the patient: air
    assert (phantom.image > 250).mean() > 0.002  # bone
    assert ((phantom.image > -130) & (phantom.image < -70)).mean() > 0.05  # fat


def test_lesion_volumes_span_two_orders_of_magnitude(phantom):
    components, count = ndimage.label(phantom.labels == TUMOUR)
    volumes = ndimage.sum_labels(np.ones_like(components), components, range(1, count + 1))
    assert count == 3
    assert volumes.max() / volumes.min() > 100


def test_lesions_lie_in_the_liver(phantom):
    organ = ndimage.binary_fill_holes(phantom.labels > 0)
    touching = ndimage.binary_dilation(phantom.labels == TUMOUR) & organ
    assert (phantom.labels[touching] == LIVER).any()
    assert ndimage.label(phantom.labels > 0)[1] == 1


def test_a_lesion_smaller_than_a_voxel_still_has_one():
    assert (make_phantom(0, **SMALL, lesion_radii=(0.5,)).labels == TUMOUR).sum() >= 1


def test_no_lesion_radii_mean_no_tumour():
    labels = make_phantom(0, **SMALL, lesion_radii=()).labels
    assert (labels == LIVER).any()
    assert not (labels == TUMOUR).any()


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LPI", "SAR"])
def test_reorientation_keeps_every_voxel_at_its_place(phantom, codes):
    turned = phantom.reoriented(codes)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    for name in ("image", "labels"):
        back = nibabel.as_closest_canonical(nibabel.Nifti1Image(getattr(turned, name), turned.affine))
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), getattr(phantom, name))
        np.testing.assert_allclose(back.affine, phantom.affine)


@pytest.mark.parametrize("codes", ["LRS", "XYZ", "LP", "lps", ""])
def test_an_orientation_that_names_no_three_axes_is_refused(phantom, codes):
    with pytest.raises(ValueError, match="such as 'LPS'"):
        phantom.reoriented(codes)
