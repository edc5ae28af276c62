"""NRRD and MetaImage files as other programs than ITK write them, and broken ones."""

import bz2
import gzip
import math
import zlib

import numpy as np
import pytest
import SimpleITK

from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError
from nnunet_godc.conversion.volumes import Segment, files_of, open_volume

SHAPE = (5, 4, 3)
VOXELS = np.arange(60, dtype=np.int16).reshape(SHAPE) - 30
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 4 3",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def stored(dtype="<i2"):
    return VOXELS.astype(dtype).tobytes(order="F")


def write_nrrd(path, changes=None, voxels=None, *, extra=(), newline="\n"):
    """`changes`: fields with other values, None for none; `extra`: further lines."""
    fields = {name: value for name, value in {**NRRD, **(changes or {})}.items() if value is not None}
    lines = ["NRRD0005", "# a comment: with a colon", *(f"{name}: {value}" for name, value in fields.items()), *extra]
    text = newline.join([*lines, "", ""])
    path.write_bytes(text.encode() + (stored() if voxels is None else voxels))
    return path


def write_meta(path, changes=None, voxels=None):
    fields = {**META, **(changes or {})}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # it comes last
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + (stored() if voxels is None else voxels))
    return path


def assert_is_the_volume(path):
    file = open_volume(path)
    np.testing.assert_array_equal(file.read(), VOXELS)
    (slab,) = file.slabs()
    np.testing.assert_array_equal(slab[1], VOXELS)
    grid = file.read_grids(CaseLog(), what="image")[0]
    assert grid.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert grid.origin == (10.0, 20.0, 30.0)
    assert grid.orientation == "LPS"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("changes", "voxels"),
    [
        ({}, stored()),
        ({"endian": "big", "type": "signed short int"}, stored(">i2")),
        ({"type": "int64"}, stored("<i8")),
        ({"type": "float", "space": "LPS"}, stored("<f4")),
        ({"type": "int8", "endian": None}, stored("i1")),
        ({"encoding": "gzip"}, gzip.compress(stored())),
        ({"encoding": "gz"}, gzip.compress(stored()[:50]) + gzip.compress(stored()[50:])),
        (
            {
                "space": "RAS",
                "space directions": "(-0.7,0,0) (0,-0.8,0) (0,0,2.5)",
                "space origin": "(-10, -20, 30)",
            },
            stored(),
        ),
        ({"space": "left-anterior-superior", "space directions": "(.7,0,0) (0,-8e-1,0) (0,0,2.5)"}, None),
    ],
)
def test_nrrds_of_all_writers_are_read(tmp_path, changes, voxels, newline):
    if changes.get("space") == "left-anterior-superior":
        changes = {**changes, "space origin": "(10,-20,30)"}
    assert_is_the_volume(write_nrrd(tmp_path / "a.nrrd", changes, voxels, newline=newline))


@pytest.mark.parametrize(
    ("changes", "voxels"),
    [
        ({}, stored()),
        ({"BinaryDataByteOrderMSB": "True"}, stored(">i2")),
        ({"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}, stored(">i2")),
        ({"ElementType": "MET_DOUBLE", "Modality": "MET_MOD_CT", "Comment": "a = b"}, stored("<f8")),
        ({"CompressedData": "True", "CompressedDataSize": "94"}, zlib.compress(stored())),
        ({"CompressedData": "True", "CompressedDataSize": "106"}, gzip.compress(stored())),
        ({"Offset": None, "Position": "10 20 30", "TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1"}, stored()),
        ({"ElementSpacing": None, "ElementSize": "0.7 0.8 2.5"}, stored()),
    ],
)
def test_metaimages_of_all_writers_are_read(tmp_path, changes, voxels):
    assert_is_the_volume(write_meta(tmp_path / "a.mha", changes, voxels))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_oblique_axes_lie_where_itk_has_them(tmp_path, ending):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(VOXELS.transpose(2, 1, 0)))
    c, s = math.cos(0.3), math.sin(0.3)
    image.SetDirection((c, -s, 0, s * c, c * c, -s, s * s, c * s, c))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10, 20, 30))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"))
    grid = open_volume(tmp_path / f"a{ending}").read_grids(CaseLog(), what="image")[0]
    for index in np.ndindex(2, 2, 2):
        expected = image.TransformIndexToPhysicalPoint([int(n) for n in index])
        np.testing.assert_allclose((grid.affine @ (*index, 1))[:3], expected, atol=1e-9)


@pytest.mark.parametrize("write", [write_nrrd, write_meta])
def test_voxels_in_a_file_beside_the_header_belong_to_the_volume(tmp_path, write):
    name = "voxels of it.raw"
    (tmp_path / name).write_bytes(stored())
    if write is write_nrrd:
        path = write(tmp_path / "a.nhdr", {"data file": name}, b"")
    else:
        path = write(tmp_path / "a.mhd", {"ElementDataFile": name}, b"")
    assert_is_the_volume(path)
    assert files_of(path) == [path, tmp_path / name]
    (tmp_path / name).unlink()
    with pytest.raises(CaseError, match="not there"):
        open_volume(path)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "a/../../b.raw", "C:\\x.raw", ""])
def test_voxels_are_not_taken_from_elsewhere(tmp_path, name):
    for path in (
        write_nrrd(tmp_path / "a.nhdr", {"data file": name}, b""),
        write_meta(tmp_path / "a.mhd", {"ElementDataFile": name}, b""),
    ):
        with pytest.raises(CaseError, match="lies elsewhere"):
            open_volume(path)


@pytest.mark.parametrize("name", ["LIST", "slice%03d.raw 1 3 1"])
def test_voxels_in_many_files_are_refused(tmp_path, name):
    for path in (
        write_nrrd(tmp_path / "a.nhdr", {"data file": name}, b""),
        write_meta(tmp_path / "a.mhd", {"ElementDataFile": name}, b""),
    ):
        with pytest.raises(CaseError, match="several files"):
            open_volume(path)


@pytest.mark.parametrize(
    ("changes", "voxels", "message"),
    [
        ({"encoding": "bzip2"}, bz2.compress(stored()), "encoding that is not read"),
        ({"encoding": "ascii"}, b"1 2 3", "encoding that is not read"),
        ({"byte skip": "-1"}, None, "skip bytes"),
        ({"type": "block"}, None, "damaged"),
        ({"space": "scanner-xyz"}, None, "not in the patient's space"),
        ({"space": None}, None, "in which space"),
        ({"space directions": "(0,0,0) (0,1,0) (0,0,1)"}, None, "damaged"),
        ({"space directions": "(nan,0,0) (0,1,0) (0,0,1)"}, None, "damaged"),
        ({"space directions": "(1e999,0,0) (0,1,0) (0,0,1)"}, None, "damaged"),
        ({"space origin": "(1,2)"}, None, "damaged"),
        ({"space origin": None}, None, "damaged"),
        ({"endian": None}, None, "damaged"),
        ({"sizes": "5 4"}, None, "damaged"),
        ({"sizes": "5 -4 -3"}, None, "damaged"),
        ({"sizes": "5 4 0"}, None, "damaged"),
        ({"sizes": "5 4 99999999999999999"}, None, "more voxels than it can hold"),
        ({"sizes": "5 4 2"}, None, "holds more voxels"),
        ({"siz\x01es": "5 4 3"}, None, "damaged"),
        ({"encoding": "gzip"}, gzip.compress(stored())[:-3], "does not decompress"),
        ({"encoding": "gzip"}, gzip.compress(stored()[:-2]), "does not decompress"),
        ({"encoding": "gzip"}, gzip.compress(stored() + b"ab"), "does not decompress"),
        ({"encoding": "gzip"}, gzip.compress(stored()) + b"rubbish", "does not decompress"),
    ],
)
def test_nrrds_that_cannot_be_relied_on_are_refused(tmp_path, changes, voxels, message):
    with pytest.raises(CaseError, match=message):
        open_volume(write_nrrd(tmp_path / "a.nrrd", changes, voxels)).read()


@pytest.mark.parametrize(
    ("changes", "voxels", "message"),
    [
        ({"NDims": "2"}, None, r"shape \(5, 4\)"),
        ({"DimSize": None}, None, "damaged"),
        ({"DimSize": "5 4 x"}, None, "damaged"),
        ({"ElementSpacing": "0.7 0.8"}, None, "damaged"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, None, "damaged"),
        ({"ElementNumberOfChannels": "3"}, None, "of 3 components"),
        ({"BinaryData": "False"}, b"1 2 3", "encoding that is not read"),
        ({"CompressedData": "True"}, zlib.compress(stored()), "how long the compressed"),
        ({"HeaderSize": "-1"}, None, "skip bytes"),
        ({"DimSize": "5 4 2"}, None, "holds more voxels"),
        ({"CompressedData": "True", "CompressedDataSize": "94"}, zlib.compress(stored())[:-1], "does not decompress"),
        ({"CompressedData": "True", "CompressedDataSize": "94"}, zlib.compress(stored())[:-1] + b"x", "decompress"),
    ],
)
def test_metaimages_that_cannot_be_relied_on_are_refused(tmp_path, changes, voxels, message):
    with pytest.raises(CaseError, match=message):
        open_volume(write_meta(tmp_path / "a.mha", changes, voxels)).read()


def test_a_field_that_is_there_twice_is_refused(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", extra=["sizes: 5 4 3"])
    with pytest.raises(CaseError, match="damaged"):
        open_volume(path)


def test_a_spacing_that_is_not_there_is_unknown_not_1_mm(tmp_path):
    """ITK takes 1 mm for a line that it does not understand."""
    path = write_meta(tmp_path / "a.mha", {"ElementSpacing": None, "ElementSpac\x01ng": "0.7 0.8 2.5"})
    with pytest.raises(UnknownGeometryError):
        open_volume(path).read_grids(CaseLog(), what="image")[0]


def test_spacings_without_a_space_are_taken_with_a_warning(tmp_path):
    changes = {"space": None, "space directions": None, "space origin": None, "spacings": "0.7 0.8 2.5"}
    notes = CaseLog()
    grid = open_volume(write_nrrd(tmp_path / "a.nrrd", changes)).read_grids(notes, what="image")[0]
    assert grid.spacing == (0.7, 0.8, 2.5)
    assert "no orientation" in notes.warnings[0]


def test_keys_of_programs_are_passed_over_but_for_segments(tmp_path):
    extra = ["Segment0_Name:=tumour: the left one", "Segment0_LabelValue:=3", "Segmentation_Source:=a:=b"]
    assert open_volume(write_nrrd(tmp_path / "a.seg.nrrd", extra=extra)).segments == (
        Segment("tumour: the left one", 0, 3),
    )


@pytest.mark.parametrize("kind", ["list", "vector"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_overlapping_segments_lie_in_the_layers_of_a_fourth_axis(tmp_path, kind, encoding):
    layers = np.zeros((2, *SHAPE), np.uint8)
    layers[0, 1:4], layers[1, 2] = 1, 3
    content = layers.tobytes(order="F")
    changes = {
        "type": "uint8",
        "dimension": "4",
        "sizes": "2 5 4 3",
        "space directions": "none (0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "kinds": f"{kind} domain domain domain",
        "encoding": encoding,
    }
    extra = [
        f"Segment{n}_{key}:={value}"
        for n in (0, 1)
        for key, value in (("Name", n), ("LabelValue", 1 + 2 * n), ("Layer", n))
    ]
    path = tmp_path / "a.seg.nrrd"
    write_nrrd(path, changes, gzip.compress(content) if encoding == "gzip" else content, extra=extra)
    file = open_volume(path)
    assert file.segments == (Segment("0", 0, 1), Segment("1", 1, 3))
    np.testing.assert_array_equal(file.read_layers(), layers)
