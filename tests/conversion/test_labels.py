import numpy as np
import pytest

from nnunet_godc.conversion.labels import LabelMap, count_values, merge_masks, read_label
from nnunet_godc.conversion.problems import CaseError, CaseLog
from nnunet_godc.conversion.volumes import open_volume

RULES = LabelMap(names={1: "liver", 2: "tumour"})


def read(path, rules=RULES, notes=None):
    return read_label(open_volume(path), rules, notes or CaseLog())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_any_type_of_whole_numbers_becomes_uint8(tmp_path, nifti, mask, dtype, ending):
    label = read(
        nifti(tmp_path / f"a{ending}", mask.astype(dtype))
        if dtype != np.int64
        else nifti(tmp_path / f"a{ending}", mask.astype(np.int32))
    )
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, mask)


def test_what_rounding_left_is_made_whole_and_told(tmp_path, nifti, mask):
    notes = CaseLog()
    stored = np.where(mask == 2, 1.9999996, np.where(mask == 1, 0.9999997, 0)).astype(np.float32)
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", stored), notes=notes), mask)
    assert notes.repairs == [f"{np.count_nonzero(mask)} label values that were within 0.001 of a whole number rounded"]


def test_scaled_labels_are_read_by_value(tmp_path, nifti, mask):
    path = nifti(tmp_path / "a.nii", mask * np.uint8(10))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.1, 0], dtype="<f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path), mask)


@pytest.mark.parametrize("value", [0.5, 1.01, np.nan, np.inf])
def test_interpolated_labels_are_refused(tmp_path, nifti, mask, value):
    stored = mask.astype(np.float32)
    stored[0, 0, 0] = value
    with pytest.raises(CaseError, match="not whole numbers"):
        read(nifti(tmp_path / "a.nii", stored))


@pytest.mark.parametrize("value", [-1, 256, 3000])
def test_an_image_given_for_a_label_is_refused(tmp_path, nifti, mask, value):
    stored = mask.astype(np.int16)
    stored[0, 0, 0] = value
    with pytest.raises(CaseError, match="Is it an image"):
        read(nifti(tmp_path / "a.nii", stored))


def test_a_value_without_a_meaning_is_refused_with_its_count(tmp_path, nifti, mask):
    mask[0, 0, :3] = 5
    with pytest.raises(CaseError, match=r"5 \(3 voxels\); known are \[0, 1, 2\]"):
        read(nifti(tmp_path / "a.nii", mask))


def test_stray_values_become_background_and_are_told(tmp_path, nifti, mask):
    expected = mask.copy()
    mask[0, 0, :3] = 7
    notes = CaseLog()
    rules = LabelMap(names=RULES.names, stray=frozenset({7, 8}))
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", mask), rules, notes), expected)
    assert notes.repairs == ["stray label values made background: 7 (3 voxels)"]


def test_values_are_mapped(tmp_path, nifti, mask):
    rules = LabelMap(names={1: "tumour"}, values={2: 1, 1: 0})
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", mask), rules), mask == 2)


def test_a_value_that_is_mapped_is_not_stray(tmp_path, nifti, mask):
    notes = CaseLog()
    rules = LabelMap(names=RULES.names, values={1: 1, 7: 2}, stray=frozenset({7}))
    stored = np.where(mask == 2, 7, mask).astype(np.uint8)
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", stored), rules, notes), mask)
    assert notes == CaseLog()


def test_two_values_may_change_places(tmp_path, nifti, mask):
    rules = LabelMap(names=RULES.names, values={1: 2, 2: 1})
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", mask), rules), np.array([0, 2, 1])[mask])


def test_a_label_without_any_voxel_is_legal(tmp_path, nifti, mask):
    assert not read(nifti(tmp_path / "a.nii", np.zeros_like(mask))).any()


def drawn(masks):
    return {name: lambda mask=mask: mask for name, mask in masks.items()}


NAMED = LabelMap(names={1: "pancreas", 2: "tumour"}, segments=(("*tumo*r*", 2), ("PDAC", 2), ("*pancreas*", 1)))


def test_named_masks_are_united_and_the_higher_label_wins(mask):
    notes = CaseLog()
    label = merge_masks(
        drawn({"Whole Pancreas": mask > 0, "pdac": mask == 2, "Stomach": mask == 0}), mask.shape, NAMED, notes
    )
    np.testing.assert_array_equal(label, mask)
    assert "left out: Stomach" in notes.warnings[0]
    assert f"overlap on {np.count_nonzero(mask == 2)} voxels" in notes.warnings[1]


def test_masks_of_one_label_may_overlap(mask):
    notes = CaseLog()
    masks = {"tumour": mask == 2, "PDAC": mask > 0}
    np.testing.assert_array_equal(merge_masks(drawn(masks), mask.shape, NAMED, notes), 2 * (mask > 0))
    assert notes == CaseLog()


def test_the_order_of_masks_does_not_matter(mask):
    masks = {"tumour": mask == 2, "pancreas": mask > 0}
    one = merge_masks(drawn(masks), mask.shape, NAMED, CaseLog())
    np.testing.assert_array_equal(one, merge_masks(drawn(dict(reversed(masks.items()))), mask.shape, NAMED, CaseLog()))


def test_masks_that_no_pattern_fits_are_refused_by_name(mask):
    with pytest.raises(CaseError, match=r"segments \(spleen\) fits the label map; add --label-map"):
        merge_masks(drawn({"spleen": mask > 0}), mask.shape, NAMED, CaseLog())


@pytest.mark.parametrize("highest", [0, 1, 2, 15, 16, 255])
def test_values_are_counted(highest):
    label = np.random.default_rng(0).integers(0, highest, size=(9, 8, 7), endpoint=True).astype(np.uint8)
    values, counts = np.unique(label, return_counts=True)
    assert count_values(label) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert count_values(label[::-1, :, ::-1].transpose(2, 0, 1)) == count_values(label)
