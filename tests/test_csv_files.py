import pytest

from nnunet_godc.csv_files import read_table
from nnunet_godc.errors import UserError


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
def test_a_table_that_is_not_in_order_is_one_sentence(write_table, content, message):
    path = write_table(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(path, required=("image", "mask"), optional=("part", "patient"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_rows_know_their_lines_and_optional_columns_are_empty(write_table):
    path = write_table("mask,image\n\nb.nii,Bilder/ä.nii\n")
    (row,) = read_table(path, required=("image", "mask"), optional=("part",))
    assert (row.line, row["image"], row["mask"], row["part"]) == (3, "Bilder/ä.nii", "b.nii", "")
    assert row.where == f"{path}, line 3"


@pytest.mark.parametrize("name", ["missing.csv", "", "\0"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / name, required=("case",))
