import gzip
import hashlib

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_godc.conversion.geometry import Grid, grid_from_affine
from nnunet_godc.conversion.nifti import (
    nifti_header,
    open_nifti,
    write_nifti,
)
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

GRID = Grid((12, 10, 6), (0.8, 0.8, 2.5), (-11.0, -7.0, 30.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def grid_of(path, notes=None, **options):
    return open_nifti(path).read_grids(notes or CaseLog(), what="image", **options)[0]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_values_and_type_are_those_of_the_file(tmp_path, nifti, ct, ending, dtype):
    voxels = np.abs(ct).astype(dtype)
    file = open_nifti(nifti(tmp_path / f"a{ending}", voxels))
    read = file.read()
    np.testing.assert_array_equal(read, voxels)
    assert read.dtype.newbyteorder("=") == voxels.dtype.newbyteorder("=")


def test_nifti_2_is_read(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii.gz", ct, image_class=nibabel.Nifti2Image)
    np.testing.assert_array_equal(open_nifti(path).read(), ct)
    assert grid_of(path).matches(GRID)


def test_whole_scaling_stays_whole_numbers(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii.gz", (ct + 1024).astype(np.uint16))
    set_scaling(path, 1.0, -1024.0)
    read = open_nifti(path).read()
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, ct)


def test_other_scaling_is_exact(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii", ct)
    set_scaling(path, 0.1, 3.0)
    slope = float(np.float32(0.1))
    np.testing.assert_array_equal(open_nifti(path).read(), ct * slope + 3.0)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_no_scaling(tmp_path, nifti, ct, slope):
    path = nifti(tmp_path / "a.nii", ct)
    set_scaling(path, slope, 5.0)
    np.testing.assert_array_equal(open_nifti(path).read(), ct)


def test_what_is_compressed_is_told_by_content(tmp_path, nifti, ct):
    nifti(tmp_path / "a.nii", ct).rename(tmp_path / "b.nii.gz")
    file = open_nifti(tmp_path / "b.nii.gz")
    assert not file.compressed
    np.testing.assert_array_equal(file.read(), ct)


def test_a_fourth_axis_of_one_is_dropped_and_of_two_refused(tmp_path, nifti, ct):
    assert open_nifti(nifti(tmp_path / "a.nii", ct[..., None])).shape == ct.shape
    with pytest.raises(CaseError, match=r"shape \(12, 10, 6, 2\); one 3D volume is needed"):
        open_nifti(nifti(tmp_path / "b.nii", np.stack([ct, ct], axis=-1)))


def test_colours_are_refused(tmp_path, nifti):
    rgb = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(CaseError, match="colours"):
        open_nifti(nifti(tmp_path / "a.nii", rgb))


@pytest.mark.parametrize("keep", [0, 1, 100, 347, 352, 400])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_cut_off_file_is_refused(tmp_path, nifti, ct, ending, keep):
    path = nifti(tmp_path / f"a{ending}", ct)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CaseError):
        open_nifti(path).read()


def test_a_gzip_file_without_its_last_bytes_is_refused(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii.gz", ct)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CaseError, match="damaged"):
        open_nifti(path).read()


def test_a_wrong_checksum_is_noticed(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii.gz", ct)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaseError, match="damaged"):
        open_nifti(path).read()


def test_a_header_that_asks_for_terabytes_allocates_nothing(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii.gz", ct)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([32767] * 3, dtype="<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(CaseError, match="more voxels than it can hold"):
        open_nifti(path)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"not an image" * 100, b"\x1f\x8b" + b"x" * 400])
def test_what_is_no_nifti_is_refused(tmp_path, content):
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(CaseError):
        open_nifti(path)


def test_qform_serves_where_there_is_no_sform(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii", ct, sform=0)
    assert nibabel.load(path).header["sform_code"] == 0
    assert grid_of(path).matches(GRID)


def test_qform_serves_where_sform_is_no_affine_matrix(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii", ct)
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)
    path.write_bytes(content)
    notes = CaseLog()
    assert grid_of(path, notes).matches(GRID)
    assert notes.repairs == ["the image's sform is not an affine matrix: qform used"]


def test_forms_that_disagree_are_told(tmp_path, nifti, ct):
    notes = CaseLog()
    path = nifti(tmp_path / "a.nii", ct, header=lambda header: header.__setitem__("qoffset_x", 50))
    assert grid_of(path, notes).matches(GRID)
    assert "sform and qform are up to 39 mm apart" in notes.warnings[0]


def test_metres_become_millimetres(tmp_path, nifti, ct):
    affine = np.diag([-0.0008, -0.0008, 0.0025, 1.0])
    affine[:3, 3] = (0.011, 0.007, 0.030)
    notes = CaseLog()
    path = nifti(tmp_path / "a.nii", ct, affine, header=lambda header: header.set_xyzt_units("meter"))
    assert grid_of(path, notes).matches(GRID)
    assert "converted to mm" in notes.repairs[0]


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_the_identity_at_1_mm_is_an_unknown_geometry(tmp_path, nifti, ct, signs):
    path = nifti(tmp_path / "a.nii", ct, np.diag([*signs, 1.0]))
    with pytest.raises(UnknownGeometryError, match="identity at 1 x 1 x 1 mm"):
        grid_of(path)
    notes = CaseLog()
    assert grid_of(path, notes, trust_header=True).spacing == (1.0, 1.0, 1.0)
    assert "unfilled header" in notes.warnings[0]
    assert grid_of(path, spacing=(0.7, 0.7, 1.6)).spacing == (0.7, 0.7, 1.6)


def test_1_mm_with_an_origin_is_known(tmp_path, nifti, ct):
    affine = np.eye(4)
    affine[0, 3] = -0.5
    assert grid_of(nifti(tmp_path / "a.nii", ct, affine)).spacing == (1.0, 1.0, 1.0)


def test_a_header_without_any_form_is_an_unknown_geometry(tmp_path, nifti, ct):
    path = nifti(tmp_path / "a.nii", ct, sform=0, qform=0)
    with pytest.raises(UnknownGeometryError, match="neither sform nor qform"):
        grid_of(path)
    trusted = grid_of(path, trust_header=True)
    assert trusted.spacing == pytest.approx((0.8, 0.8, 2.5))
    assert trusted.orientation == "LPS"


@pytest.mark.parametrize("compression", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, ">i2"])
def test_every_reader_sees_what_was_written(tmp_path, ct, compression, dtype):
    angle = np.radians(12)
    affine = np.array(
        [
            [0.8 * np.cos(angle), -0.8 * np.sin(angle), 0, 4.3],
            [0.8 * np.sin(angle), 0.8 * np.cos(angle), 0, -9.1],
            [0, 0, 2.5, 77.7],
            [0, 0, 0, 1],
        ]
    )
    grid = grid_from_affine(ct.shape, affine, CaseLog())
    voxels = np.abs(ct).astype(dtype)[::-1, ::1, ::-1]
    path = tmp_path / ("a.nii" if compression is None else "a.nii.gz")
    digest = write_nifti(path, voxels, nifti_header(grid, np.dtype(dtype)), compression=compression)

    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with_itk = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(with_itk).transpose(2, 1, 0), voxels)
    np.testing.assert_allclose(with_itk.GetSpacing(), grid.spacing, rtol=1e-6)
    np.testing.assert_allclose(with_itk.GetOrigin(), grid.origin, rtol=1e-6)
    np.testing.assert_allclose(np.reshape(with_itk.GetDirection(), (3, 3)), grid.direction, atol=1e-6)
    with_nibabel = nibabel.load(path)
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ with_nibabel.affine, grid.affine, atol=1e-4)
    np.testing.assert_allclose(with_nibabel.get_qform(), with_nibabel.get_sform(), atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(with_nibabel.dataobj), voxels)
    assert open_nifti(path).read_grids(CaseLog(), what="image")[0].matches(grid)


def test_equal_input_gives_equal_bytes(tmp_path, ct):
    header = nifti_header(GRID, ct.dtype)
    for name in ("a.nii.gz", "another name.nii.gz"):
        write_nifti(tmp_path / name, ct, header, compression=1)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "another name.nii.gz").read_bytes()


def test_a_volume_of_many_slabs_is_written_and_read_whole(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 3000, size=(300, 300, 80)).astype(np.int16)
    grid = Grid(voxels.shape, (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), GRID.direction)
    write_nifti(tmp_path / "a.nii.gz", voxels, nifti_header(grid, voxels.dtype), compression=1)
    file = open_nifti(tmp_path / "a.nii.gz")
    assert len(list(file.slabs())) > 1
    np.testing.assert_array_equal(file.read(), voxels)


def test_geometry_goes_over_bit_by_bit_and_nothing_else_does():
    other = Grid((12, 10, 6), (0.7, 0.9, 3.1), (1.0, 2.0, 3.0), ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    image = nifti_header(other, np.dtype(np.int16))
    label = nifti_header(GRID, np.dtype(np.uint8), geometry_of=image)
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.get_sform(), image.get_sform())
    np.testing.assert_array_equal(label.get_qform(), image.get_qform())


def set_scaling(path, slope, intercept):
    """Overwrite scl_slope and scl_inter, which nibabel sets by itself."""
    compressed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    content[112:120] = np.array([slope, intercept], dtype="<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if compressed else content)


@pytest.mark.parametrize(("units", "factor"), [("meter", 0.001), ("micron", 1000), ("micron", 1), ("meter", 1)])
def test_units_are_converted_unless_no_voxel_could_be_so(tmp_path, nifti, ct, units, factor):
    affine = np.diag([-0.8 * factor, -0.8 * factor, 2.5 * factor, 1])
    path = nifti(tmp_path / "a.nii", ct, affine, header=lambda header: header.set_xyzt_units(units))
    notes = CaseLog()
    grid = open_nifti(path).read_grids(notes, what="image")[0]
    assert grid.spacing == pytest.approx((0.8, 0.8, 2.5), rel=1e-5)
    assert ("taken as mm" in "".join(notes.warnings)) == (factor == 1)
