import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_godc.conversion.splits import draw_folds, draw_test_cases, place_splits
from nnunet_godc.errors import UserError

SINGLE = {f"case_{number:03}": f"patient_{number:03}" for number in range(174)}
# Case to patient, up to five scans of each.
PATIENTS = st.lists(st.integers(1, 5), min_size=5, max_size=40).map(
    lambda scans: {f"c{patient}_{scan}": f"p{patient}" for patient, count in enumerate(scans) for scan in range(count)}
)


def backwards(patients):
    return dict(reversed(patients.items()))


@given(patients=PATIENTS, seed=st.integers(), folds=st.integers(2, 5))
def test_every_case_validates_once_and_no_patient_stands_on_both_sides(patients, seed, folds):
    drawn = draw_folds(patients, seed=seed, folds=folds)
    assert len(drawn) == folds
    assert sorted(case for fold in drawn for case in fold["val"]) == sorted(patients)
    for fold in drawn:
        assert fold["val"]
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
        assert fold["train"] == sorted(fold["train"])
        assert fold["val"] == sorted(fold["val"])
        assert not {patients[case] for case in fold["train"]} & {patients[case] for case in fold["val"]}
    sizes = [len(fold["val"]) for fold in drawn]
    assert max(sizes) - min(sizes) <= max(Counter(patients.values()).values())


def test_folds_of_single_scans_differ_by_one_case_at_most():
    assert sorted(len(fold["val"]) for fold in draw_folds(SINGLE, seed=0)) == [34, 35, 35, 35, 35]


def test_patients_with_many_scans_are_dealt_first():
    patients = {f"a{scan}": "a" for scan in range(4)} | {f"b{scan}": "b" for scan in range(4)}
    patients |= {f"c{number}": f"c{number}" for number in range(12)}
    for seed in range(20):
        assert [len(fold["val"]) for fold in draw_folds(patients, seed=seed)] == [4] * 5


def test_folds_follow_from_the_seed_alone():
    drawn = draw_folds(SINGLE, seed=12345)
    assert draw_folds(backwards(SINGLE), seed=12345) == drawn
    assert draw_folds(SINGLE, seed=12346) != drawn
    # Drawn once and for all: a published seed has to give the same folds on every machine and in every version.
    few = {name: SINGLE[name] for name in sorted(SINGLE)[:7]}
    assert [fold["val"] for fold in draw_folds(few, seed=1, folds=3)] == [
        ["case_001", "case_004", "case_006"],
        ["case_000", "case_002"],
        ["case_003", "case_005"],
    ]


def test_fewer_patients_than_folds_are_refused():
    patients = {f"scan_{number}": f"patient_{number % 4}" for number in range(40)}
    with pytest.raises(UserError, match=r"5 folds need 5 patients .* there are 4"):
        draw_folds(patients, seed=0)


def test_share_of_the_paper_gives_34_of_174_cases():
    drawn = draw_test_cases(SINGLE, share=34 / 174, seed=0)
    assert len(drawn) == 34
    assert drawn < set(SINGLE)
    assert draw_test_cases(backwards(SINGLE), share=34 / 174, seed=0) == drawn
    assert draw_test_cases(SINGLE, share=34 / 174, seed=1) != drawn


@given(patients=PATIENTS, seed=st.integers(0, 9), share=st.floats(0, 1, exclude_max=True))
def test_test_cases_are_whole_patients_and_about_the_share(patients, seed, share):
    drawn = draw_test_cases(patients, share=share, seed=seed)
    tested = {patients[case] for case in drawn}
    assert drawn == {case for case, patient in patients.items() if patient in tested}
    assert drawn != set(patients)
    assert abs(len(drawn) - share * len(patients)) <= max(Counter(patients.values()).values())


def test_the_nearest_number_of_test_cases_may_be_more_or_less_than_the_share():
    patients = {f"c{patient}_{scan}": f"p{patient}" for patient in range(5) for scan in range(5)}
    for share, cases in ((0.15, 5), (0.09, 0), (0.29, 5)):
        assert len(draw_test_cases(patients, share=share, seed=0)) == cases


def test_no_share_and_no_cases_give_no_test_cases():
    assert draw_test_cases(SINGLE, share=0, seed=0) == set()
    assert draw_test_cases({}, share=0.5, seed=0) == set()


@pytest.fixture
def placing(tmp_path, monkeypatch):
    """A dataset's folder with folds, and where nnU-Net looks for them."""
    dataset = tmp_path / "raw" / "Dataset501_Test"
    dataset.mkdir(parents=True)
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return dataset, tmp_path / "preprocessed" / "Dataset501_Test" / "splits_final.json"


def test_folds_go_where_nnunet_looks_and_replace_none_unasked(placing):
    dataset, there = placing
    folds = (dataset / "splits_final.json").read_text()
    place_splits(dataset, overwrite=False)
    assert there.read_text() == folds
    there.write_text("[]")
    assert "left alone" in place_splits(dataset, overwrite=False)
    assert there.read_text() == "[]"
    place_splits(dataset, overwrite=True)
    assert there.read_text() == folds


def test_without_preprocessed_data_folds_are_to_be_copied(placing, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "copy them" in place_splits(placing[0], overwrite=False)


@pytest.mark.parametrize("where", ["nnUNet_preprocessed", "the dataset's folder", "the file"])
def test_folds_that_cannot_be_placed_are_told_in_a_sentence(placing, where):
    dataset, there = placing
    if where == "the file":
        there.mkdir(parents=True)
    else:
        in_the_way = there.parent.parent if where == "nnUNet_preprocessed" else there.parent
        in_the_way.parent.mkdir(exist_ok=True)
        in_the_way.write_text("no folder")
    with pytest.raises(UserError, match="cannot be put into nnUNet_preprocessed"):
        place_splits(dataset, overwrite=True)
