import pytest

from nnunet_godc.conversion.collection import (
    Collection,
    check_case_name,
    dataset_labels,
    matched_by_number,
    missing_partners,
    tumour_only,
)
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.errors import UserError

PANORAMA_LIKE = LabelMap(
    names={1: "tumour", 2: "veins", 4: "pancreas", 5: "duct"},
    stray=frozenset({7}),
    region_of={"veins": (2,), "tumour": (1,), "pancreas": (4, 1, 5), "duct": (5,)},
)


def collection(rules, tumour):
    return Collection("title", "Name", rules, tumour, "physical", "", "")


def test_wide_regions_come_before_narrow_ones_with_a_value_of_their_own():
    labels, order = dataset_labels(PANORAMA_LIKE, regions=True)
    assert list(labels) == ["background", "pancreas", "veins", "tumour", "duct"]
    assert labels["pancreas"] == [4, 1, 5]
    assert order == (4, 2, 1, 5)


def test_labels_that_form_no_regions_are_told():
    with pytest.raises(UserError, match="leave --regions away"):
        dataset_labels(LabelMap(names={1: "pancreas"}), regions=True)


def test_the_tumour_alone_is_kept_and_stray_values_stay_stray():
    rules = tumour_only(collection(PANORAMA_LIKE, 1)).rules
    assert rules.names == {1: "tumour"}
    assert rules.table() == {0: 0, 1: 1, 2: 0, 4: 0, 5: 0, 7: 0}


def test_a_collection_without_tumour_has_none_to_keep():
    with pytest.raises(UserError, match="no tumour label"):
        tumour_only(collection(LabelMap(names={1: "pancreas"}), None))


@pytest.mark.parametrize("name", ["a", "LiTS_001", "PANC-1.2+x"])
def test_names_of_letters_and_digits_are_taken(name):
    assert check_case_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", " a", "a\n", "-a", "x" * 129, "a..b"])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(UserError, match="cannot name a case"):
        check_case_name(name)


def numbered(root, *names):
    return matched_by_number([root / name for name in names], r"[vs](\d+)", what="file", root=root)


def test_files_are_found_by_number_and_of_several_none_is_taken(tmp_path):
    found = numbered(tmp_path, "x/v1", "y/V01", "v2", "v2.txt")
    assert found.files == {2: tmp_path / "v2"}
    assert found.several == {1}
    assert found.problems == ("file 1 is there several times: x/v1 and y/V01; keep one and move the rest away",)


def test_images_and_labels_without_each_other_are_named(tmp_path):
    images, labels = numbered(tmp_path, "v1", "v2", "v4", "x/v4"), numbered(tmp_path, "s2", "s3", "s4")
    problems = missing_partners(images, labels, tmp_path)
    assert [problem.partition(";")[0] for problem in problems] == ["v1 has no segmentation", "s3 has no image"]
