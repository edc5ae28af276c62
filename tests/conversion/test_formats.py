import numpy as np
import pytest
import SimpleITK

from nnunet_godc.conversion.files import ending_of
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError
from nnunet_godc.conversion.volumes import Segment, open_volume

ENDINGS = [".nrrd", ".mha", ".mhd", ".nhdr"]


def write(
    path, voxels, *, spacing=(0.8, 0.8, 2.5), origin=(-11.0, -7.0, 30.0), compress=False, direction=None, keys=None
):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.ravel(direction).tolist())
    for key, value in (keys or {}).items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path), compress)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compress", [False, True])
def test_voxels_and_grid_are_those_of_the_file(tmp_path, ct, ending, compress):
    file = open_volume(write(tmp_path / f"a{ending}", ct, compress=compress))
    grid = file.read_grids(CaseLog(), what="image")[0]
    assert file.shape == ct.shape
    np.testing.assert_array_equal(file.read(), ct)
    assert grid.spacing == (0.8, 0.8, 2.5)
    assert grid.origin == (-11.0, -7.0, 30.0)
    assert grid.orientation == "LPS"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_axes_are_understood(tmp_path, ct, ending):
    file = open_volume(write(tmp_path / f"a{ending}", ct, direction=np.diag([-1, -1, 1])))
    assert file.read_grids(CaseLog(), what="image")[0].orientation == "RAS"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_header_that_says_nothing_is_an_unknown_geometry(tmp_path, ct, ending):
    file = open_volume(write(tmp_path / f"a{ending}", ct, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)))
    with pytest.raises(UnknownGeometryError, match="1 x 1 x 1 mm"):
        file.read_grids(CaseLog(), what="image")[0]
    assert file.read_grids(CaseLog(), what="image", trust_header=True)[0].spacing == (1.0, 1.0, 1.0)
    notes = CaseLog()
    assert file.read_grids(notes, what="image", spacing=(0.7, 0.7, 2.0))[0].spacing == (0.7, 0.7, 2.0)
    assert "as given" in notes.repairs[0]


def test_names_of_segments_are_read(tmp_path, mask):
    keys = {
        "Segment0_LabelValue": "1",
        "Segment0_Name": "Pancreas",
        "Segment1_LabelValue": "2",
        "Segment1_Name": "PDAC",
    }
    expected = (Segment("Pancreas", 0, 1), Segment("PDAC", 0, 2))
    assert open_volume(write(tmp_path / "a.seg.nrrd", mask, keys=keys)).segments == expected


def test_several_components_are_refused(tmp_path):
    image = SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorUInt8, 2)
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(CaseError, match="of 2 components; one 3D volume is needed"):
        open_volume(tmp_path / "a.nrrd")


def test_two_dimensions_are_refused(tmp_path):
    SimpleITK.WriteImage(SimpleITK.Image([4, 4], SimpleITK.sitkInt16), str(tmp_path / "a.mha"))
    with pytest.raises(CaseError, match=r"shape \(4, 4\)"):
        open_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_off_file_is_refused(tmp_path, ct, ending, compress):
    path = write(tmp_path / f"a{ending}", ct, compress=compress)
    content = path.read_bytes()
    for keep in (0, 20, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:keep])
        with pytest.raises(CaseError):
            open_volume(path).read()


def test_a_missing_file_is_refused(tmp_path):
    for name in ("a.nrrd", "a.mha", "a.nii.gz"):
        with pytest.raises(CaseError, match="missing"):
            open_volume(tmp_path / name)


def test_an_archive_is_not_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(CaseError, match="unpack it first"):
        open_volume(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.b.nii.gz", ".nii.gz"), ("A.NII", ".nii"), ("s.seg.nrrd", ".nrrd"), ("x.tar.gz", ".tar.gz"), ("x.png", "")],
)
def test_endings_are_told_whatever_their_case(tmp_path, name, ending):
    assert ending_of(tmp_path / name) == ending
