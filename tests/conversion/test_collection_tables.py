import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import by_case, read_spacings
from nnunet_godc.errors import UserError


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
def test_spacings_are_read_as_any_spreadsheet_saves_them(write_table, content):
    assert read_spacings(write_table(content)) == {"LITS_028": (0.7, 0.75, 1.6), "LITS_030": (1, 1, 5)}


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "1e999", "one", "1_0", "1.000,5", "٣", "0x1"])
def test_a_spacing_is_a_positive_finite_number(write_table, number):
    with pytest.raises(UserError, match=r"\.csv, line 3: y is .*; write a positive number"):
        read_spacings(write_table(f'case,x,y,z\nLITS_028,1,1,1\nLITS_030,1,"{number}",1\n'))


def test_a_case_has_one_spacing(write_table):
    with pytest.raises(UserError, match="line 3: LITS_028 is there twice"):
        read_spacings(write_table("case,x,y,z\nLITS_028,1,1,1\nLITS_028,1,1,1\n"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", "..", "._a", "größe"])
def test_names_that_leave_the_folder_or_break_file_systems_are_refused(write_table, name):
    with pytest.raises(UserError, match=r"line 2: .* cannot name a case"):
        read_spacings(write_table(f"case,x,y,z\n{name},1,1,1\n"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from('case,fold;xyz\t\r\n"0123.-'), max_size=80) | st.text() | st.binary())
def test_whatever_a_file_holds_a_table_or_one_sentence_comes_of_it(write_table, text):
    path = write_table(text if isinstance(text, bytes) else "case,x,y,z\n" + text.encode("utf-8", "ignore").decode())
    with contextlib.suppress(UserError):
        spacings = read_spacings(path)
        assert all(size > 0 for sizes in spacings.values() for size in sizes)


CASES = [
    CaseSource("LiTS_028", Path("volume-28.nii"), None),
    CaseSource("LiTS_002", Path("volume-2.nii.gz"), None),
    CaseSource("LiTS_test_028", Path("test-volume-28.nii"), None, test=True),
]


@pytest.mark.parametrize(
    ("called", "case"),
    [
        ("28", "LiTS_028"),
        ("028", "LiTS_028"),
        ("volume-28", "LiTS_028"),
        ("volume-2", "LiTS_002"),
        ("LiTS_028", "LiTS_028"),
        ("test-volume-28", "LiTS_test_028"),
    ],
)
def test_a_table_may_call_cases_by_their_number_or_their_file(called, case):
    assert by_case({called: 1}, CASES, where="a.csv") == {case: 1}


def test_names_of_no_case_or_of_one_twice_are_refused():
    with pytest.raises(UserError, match=r"a case that is not there: 'LiTS_29' \(did you mean LiTS_028\?\)"):
        by_case({"LiTS_29": 1}, CASES, where="a.csv")
    with pytest.raises(UserError, match=r"2 cases that are not there, such as .30. \(cases are called like LiTS_028"):
        by_case({"31": 1, "30": 1}, CASES, where="a.csv")
    with pytest.raises(UserError, match="LiTS_028 is there twice"):
        by_case({"28": 1, "LiTS_028": 2}, CASES, where="a.csv")
