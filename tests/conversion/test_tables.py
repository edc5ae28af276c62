import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_godc.conversion.tables import check_known_cases, read_spacings, read_table
from nnunet_godc.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write_content(content):
        path = tmp_path / "Größen der Schichten.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_content


@pytest.mark.parametrize(
    "content",
    [
        "case,x,y,z\nLITS_028,0.7,0.75,1.6\nLITS_030,1,1,5\n",
        "\ufeffcase,x,y,z\r\nLITS_028,0.7,0.75,1.6\r\nLITS_030,1,1,5",
        "case;x;y;z\nLITS_028;0,7;0,75;1,6\nLITS_030;1;1;5\n",
        "z\tCase\tY\tx\n1.6\tLITS_028\t0.75\t.7\n5\tLITS_030\t1\t1e0\n",
        'case, x, y, z\n\n"LITS_028", "0,7", 0.75, 1.6\nLITS_030 ,1,1,5,,\n,,,\n',
        "case,x,y,z\rLITS_028,0.7,0.75,1.6\rLITS_030,1,1,5\r",
    ],
    ids=["plain", "byte-order-mark-and-crlf", "semicolons", "tabs-and-other-order", "blanks-and-quotes", "cr"],
)
def test_spacings_are_read_as_any_spreadsheet_saves_them(write, content):
    assert read_spacings(write(content)) == {"LITS_028": (0.7, 0.75, 1.6), "LITS_030": (1, 1, 5)}


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "1e999", "one", "1_0", "1.000,5", "٣", "0x1"])
def test_a_spacing_is_a_positive_finite_number(write, number):
    with pytest.raises(UserError, match=r"\.csv, line 3: y is .*; write a positive number"):
        read_spacings(write(f'case,x,y,z\nLITS_028,1,1,1\nLITS_030,1,"{number}",1\n'))


def test_a_case_has_one_spacing(write):
    with pytest.raises(UserError, match="line 3: LITS_028 is there twice"):
        read_spacings(write("case,x,y,z\nLITS_028,1,1,1\nLITS_028,1,1,1\n"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", "._a", "größe"])
def test_names_that_leave_the_folder_or_break_file_systems_are_refused(write, name):
    with pytest.raises(UserError, match=r"line 2: .* cannot name a case"):
        read_spacings(write(f"case,x,y,z\n{name},1,1,1\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows; write a header 'image,mask' and a line for every case"),
        ("image,mask\n", "has no rows"),
        ("a.nii,b.nii\n", "has no header; its first line has to be 'image,mask'"),
        ("image,part\na,Tr\n", "the header lacks mask"),
        ("image,mask,patiant\na,b,c\n", "unknown column 'patiant' in the header; did you mean patient"),
        ("image,mask,colour\na,b,c\n", "unknown column 'colour' in the header; known are image, mask, part, patient"),
        ("image,mask,image\na,b,c\n", "column image is there twice"),
        ("image,mask\na\n", "line 2: 1 fields where the header has 2"),
        ("image,mask\n\na,b,c\n", "line 3: 3 fields where the header has 2"),
        ("image,mask\na,\n", "line 2: mask is empty"),
        ('image,mask\na,"b\n', "line 2: its quotation marks are not in order"),
        (f"image,mask\na,{'b' * 200_000}\n", "line 2"),
        (b"image,mask\n\xfc,b\n", "is not UTF-8 text"),
        (b"image,mask\n\0,b\n", "is not UTF-8 text"),
        ("image,mask\na,b\n".encode("utf-16"), "is not UTF-8 text"),
        (b"\x1f\x8b\x08" + bytes(range(256)), "is not UTF-8 text"),
        (b" " * (2**24 + 1), "is larger than 16 MiB"),
    ],
)
def test_a_table_that_is_not_in_order_is_one_sentence(write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(path, required=("image", "mask"), optional=("part", "patient"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_rows_know_their_lines_and_optional_columns_are_empty(write):
    path = write("mask,image\n\nb.nii,Bilder/ä.nii\n")
    (row,) = read_table(path, required=("image", "mask"), optional=("part",))
    assert (row.line, row["image"], row["mask"], row["part"]) == (3, "Bilder/ä.nii", "b.nii", "")
    assert row.where == f"{path}, line 3"


@pytest.mark.parametrize("name", ["missing.csv", "", "\0"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / name, required=("case",))


def test_unknown_cases_are_named_with_the_nearest_that_there_is():
    check_known_cases(["LITS_028"], ["LITS_028", "LITS_030"], where="a.csv")
    with pytest.raises(
        UserError, match=r"a\.csv names a case that is not there: 'LITS_28' \(did you mean LITS_028\?\)"
    ):
        check_known_cases(["LITS_28"], ["LITS_028", "LITS_131"], where="a.csv")
    with pytest.raises(
        UserError, match="names 2 cases that are not there, such as 'a'; cases are called like LITS_028"
    ):
        check_known_cases(["b", "a"], ["LITS_028"], where="a.csv")
    with pytest.raises(UserError, match="not there: 'a'"):
        check_known_cases(["a"], [], where="a.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from('case,fold;xyz\t\r\n"0123.-'), max_size=80) | st.text() | st.binary())
def test_whatever_a_file_holds_a_table_or_one_sentence_comes_of_it(write, text):
    path = write(text if isinstance(text, bytes) else "case,x,y,z\n" + text.encode("utf-8", "ignore").decode())
    with contextlib.suppress(UserError):
        spacings = read_spacings(path)
        assert all(size > 0 for sizes in spacings.values() for size in sizes)
