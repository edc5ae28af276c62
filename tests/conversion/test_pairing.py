import csv
import stat

import pytest

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.pairing import (
    new_names,
    new_patients,
    pairs_by_pattern,
    pairs_by_table,
    read_keys,
    write_keys,
)
from nnunet_godc.conversion.problems import Problem
from nnunet_godc.errors import UserError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "Sammlung mit Lücke"
    root.mkdir()
    return root


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def pairs(root, image, mask):
    found, problems = pairs_by_pattern(root, image, mask)
    shown = [
        (pair.image.relative_to(root).as_posix(), pair.label.relative_to(root).as_posix(), pair.patient)
        for pair in found
    ]
    return shown, problems


def test_endings_may_differ_from_case_to_case(root):
    touch(root, "images/a.nii.gz", "masks/a.nrrd", "images/b.mha", "masks/b.nii")
    assert pairs(root, "images/{case}", "masks/{case}") == (
        [("images/a.nii.gz", "masks/a.nrrd", ""), ("images/b.mha", "masks/b.nii", "")],
        [],
    )


def test_cases_are_in_the_order_of_their_numbers(root):
    touch(root, *(f"{part}/s{n}.nii" for n in (10, 9, 1) for part in ("images", "masks")))
    assert [image for image, *_ in pairs(root, "images/{case}", "masks/{case}")[0]] == [
        "images/s1.nii",
        "images/s9.nii",
        "images/s10.nii",
    ]


def test_patients_and_wildcards_are_read_from_paths(root):
    touch(root, "P7/2019 portal/ct_1.nii.gz", "P7/2019 portal/seg_1_reader2.nii.gz")
    shown, _ = pairs(root, "{patient}/*/ct_{case}", "**/seg_{case}_reader?")
    assert shown == [("P7/2019 portal/ct_1.nii.gz", "P7/2019 portal/seg_1_reader2.nii.gz", "P7")]


def test_what_is_special_in_a_regular_expression_is_not_special_here(root):
    touch(root, "i(1)+/a.nii", "m[2]/a.nii", "mX/a.nii")
    assert len(pairs(root, "i(1)+/{case}", "m[2]/{case}")[0]) == 1


def test_images_and_masks_that_stay_alone_are_named_to_their_owner_alone(root):
    touch(root, "images/a.nii", "masks/a.nii", "images/Müller.nii", "masks/Maier.nii")
    shown, problems = pairs(root, "images/{case}", "masks/{case}")
    assert len(shown) == 1
    assert [problem.sentence[:20] for problem in problems] == ["1 images have no mas", "1 masks have no imag"]
    assert [problem.where for problem in problems] == ["images/Müller.nii", "masks/Maier.nii"]
    assert "M" not in "".join(problem.sentence for problem in problems)


def test_a_pattern_that_fits_a_case_twice_is_told(root):
    touch(root, "images/a.nii", "masks/a_1.nii", "masks/a_2.nii")
    shown, problems = pairs(root, "images/{case}", "masks/{case}_?")
    assert not shown
    assert "fit a pattern several times" in problems[0].sentence


def test_one_name_in_two_formats_is_not_guessed_about(root):
    touch(root, "images/a.nii", "images/a.nrrd", "masks/a.nii")
    shown, problems = pairs(root, "images/{case}", "masks/{case}")
    assert not shown
    assert len(problems) == 2


@pytest.mark.parametrize(("image", "mask"), [("images/a", "masks/{case}"), ("nothing/{case}", "masks/{case}")])
def test_patterns_that_cannot_fit_are_refused(root, image, mask):
    touch(root, "images/a.nii", "masks/a.nii")
    with pytest.raises(UserError, match="--image-pattern"):
        pairs(root, image, mask)


def table(root, *lines):
    path = root / "pairs.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_table_names_pairs_patients_and_parts(root):
    touch(root, "a.nii", "b.nii", "t.nii")
    path = table(root, "image,mask,patient,part,case", "a.nii,b.nii,7,train,first", "t.nii,,8,test,")
    assert pairs_by_table(root, path) == (
        [
            CaseSource("first", root / "a.nii", root / "b.nii", patient="7"),
            CaseSource("", root / "t.nii", None, test=True, patient="8"),
        ],
        [],
    )


def test_lines_with_missing_files_are_told_and_the_others_go_on(root):
    touch(root, "a.nii", "b.nii")
    found, problems = pairs_by_table(root, table(root, "image,mask", "a.nii,b.nii", "x.nii,b.nii", "a.nii,"))
    assert len(found) == 1
    assert problems == [
        Problem("pairs.csv, line 3: the image does not exist", "x.nii, b.nii"),
        Problem("pairs.csv, line 4: there is no mask, and it is not said to be for testing", "a.nii"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [("a.nii,b.nii,../x,", "line 2: '../x' cannot name a case"), ("a.nii,b.nii,,training", "it is train or test")],
)
def test_a_line_that_cannot_be_meant_is_refused(root, line, message):
    touch(root, "a.nii", "b.nii")
    with pytest.raises(UserError, match=message):
        pairs_by_table(root, table(root, "image,mask,case,part", line))


def test_names_are_new_and_those_of_the_key_table_stay(root):
    found = [CaseSource("", root / name, None) for name in ("a.nii", "b.nii", "c.nii")]
    assert new_names(found, "PANC", {}, root) == ["PANC_0001", "PANC_0002", "PANC_0003"]
    keys = {"b.nii": "PANC_0001", "gone.nii": "PANC_0002"}
    assert new_names(found, "PANC", keys, root) == ["PANC_0003", "PANC_0001", "PANC_0004"]


def test_a_name_that_the_user_gives_is_not_given_again(root):
    found = [CaseSource("", root / "a.nii", None), CaseSource("PANC_0001", root / "b.nii", None)]
    assert new_names(found, "PANC", {}, root) == ["PANC_0002", "PANC_0001"]


def test_scans_of_one_patient_share_a_made_up_name(root):
    found = [
        CaseSource("", root / name, None, patient=who) for name, who in (("a", "Müller"), ("b", ""), ("c", "Müller"))
    ]
    assert new_patients(found, ["n1", "n2", "n3"]) == ["n1", "n2", "n1"]


def test_the_key_table_is_for_its_owner_and_can_be_read_back(root, tmp_path):
    path = tmp_path / "keys.csv"
    path.write_text("old")
    path.chmod(0o644)
    pair = CaseSource("", root / "Müller, Hans.nii", root / "m.nii")
    write_keys(path, root, [("PANC_0001", "PANC_0001", True, pair)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {
                "case": "PANC_0001",
                "patient": "PANC_0001",
                "part": "test",
                "image": "Müller, Hans.nii",
                "mask": "m.nii",
            }
        ]
    assert read_keys(path) == {"Müller, Hans.nii": "PANC_0001"}
    assert read_keys(tmp_path / "none.csv") == {}


def test_a_key_file_that_cannot_be_written_is_told(root, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_keys(tmp_path / "no folder" / "keys.csv", root, [])
