import hashlib
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_godc.conversion.case import CaseSettings, CaseSource, convert_case, fingerprint, inspect_case
from nnunet_godc.conversion.geometry import Volume, grid_from_affine
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.problems import CaseError, CaseLog, UnknownGeometryError

SETTINGS = CaseSettings(LabelMap(names={1: "liver", 2: "tumour"}), label_grid="image")
LPS = np.diag([-0.8, -0.8, 2.5, 1.0])
LPS[:3, 3] = (11.0, 7.0, 30.0)
RAS = np.diag([0.8, 0.8, 2.5, 1.0])
RAS[:3, 3] = (-11.0, -7.0, 30.0)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "target"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
    return folder


@pytest.fixture
def source(tmp_path, nifti, ct, mask):
    """A case of its own folder; its image and label can be replaced."""

    def source(image=ct, label=mask, affine=RAS, label_affine=None, ending=".nii", **options):
        image_path = nifti(tmp_path / "source" / f"image{ending}", image, affine)
        label_path = None
        if label is not None:
            label_path = nifti(
                tmp_path / "source" / f"label{ending}", label, affine if label_affine is None else label_affine
            )
        return CaseSource("case", image_path, label_path, **options)

    return source


@pytest.fixture
def convert(tmp_path, folder):
    def convert(source, **options):
        return convert_case(source, replace(SETTINGS, **options), tmp_path / "source", folder)

    return convert


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
@pytest.mark.parametrize("stored", ["LPS", "RAS", "RAI", "SPL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_voxel_keeps_its_value_and_its_place(
    source, convert, folder, positions, ct, mask, orientation, stored, ending
):
    image = nibabel.Nifti1Image(ct, RAS)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(RAS), nibabel.orientations.axcodes2ornt(tuple(stored))
    )
    turned = image.as_reoriented(turn)
    turned_mask = nibabel.Nifti1Image(mask, RAS).as_reoriented(turn)
    case = source(np.asanyarray(turned.dataobj), np.asanyarray(turned_mask.dataobj), turned.affine, ending=ending)
    truth, label_truth = positions(case.image), positions(case.label)

    record = convert(case, orientation=orientation)
    image_path = folder / record["image"]["file"]
    assert positions(image_path) == truth
    assert positions(folder / record["label"]["file"]) == label_truth
    assert "".join(nibabel.aff2axcodes(nibabel.load(image_path).affine)) == orientation
    assert record["geometry"]["image"]["orientation"] == stored
    assert record["geometry"]["after"]["orientation"] == orientation


def test_image_and_label_have_one_geometry_to_the_last_bit(source, convert, folder):
    angle = np.radians(7)
    affine = RAS.copy()
    affine[:2, :2] = 0.8 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    record = convert(source(affine=affine))
    read = [SimpleITK.ReadImage(str(folder / record[part]["file"])) for part in ("image", "label")]
    for what in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(read[0], what)() == getattr(read[1], what)()


def test_extreme_values_survive(source, convert, folder, ct):
    ct[0, 0, :2] = (-3024, 5475)
    record = convert(source(ct))
    values = np.asanyarray(nibabel.load(folder / record["image"]["file"]).dataobj)
    assert (values.min(), values.max()) == (-3024, 5475)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_an_image_that_fits_already_is_linked_where_that_is_asked_for(source, convert, folder, ending):
    case = source(affine=LPS, ending=ending)
    record = convert(case, file_ending=ending, link=True)
    assert (record["image"]["written"], record["label"]["written"]) == ("linked", "encoded")
    assert (folder / record["image"]["file"]).samefile(case.image)
    assert record["image"]["sha256"] == hashlib.sha256(case.image.read_bytes()).hexdigest()
    assert not (folder / record["label"]["file"]).samefile(case.label)


def test_copies_are_made_unless_links_are_asked_for(source, convert, folder):
    case = source(affine=LPS)
    record = convert(case, file_ending=".nii")
    assert record["image"]["written"] == "copied"
    assert not (folder / record["image"]["file"]).samefile(case.image)
    assert (folder / record["image"]["file"]).read_bytes() == case.image.read_bytes()


def test_copies_are_made_where_links_are_not_possible(source, convert, folder, monkeypatch):
    def cross_device(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", cross_device)
    record = convert(source(affine=LPS), file_ending=".nii", link=True)
    assert record["image"]["written"] == "copied"
    assert files(folder) == ["imagesTr/case_0000.nii", "labelsTr/case.nii"]


def test_a_linked_image_goes_with_a_label_that_is_mended(source, convert, folder, positions, mask):
    case = source(affine=LPS, label_affine=np.eye(4))
    record = convert(case, file_ending=".nii", link=True)
    assert (record["image"]["written"], record["label"]["written"]) == ("linked", "encoded")
    read = [SimpleITK.ReadImage(str(folder / record[part]["file"])) for part in ("image", "label")]
    assert read[0].GetOrigin() == read[1].GetOrigin()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(read[1]).transpose(2, 1, 0), mask)
    assert len(record["repairs"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.__setitem__(slice(80, 84), np.float32(0.9).tobytes()),  # pixdim against the sform
        lambda content: content.__setitem__(slice(268, 272), np.float32(99).tobytes()),  # qoffset_x against it
        lambda content: content.__setitem__(slice(112, 116), np.float32(2).tobytes()),  # scl_slope
        lambda content: content.__setitem__(slice(123, 124), b"\x01"),  # metres
    ],
)
def test_a_header_on_which_readers_disagree_is_not_linked(source, convert, change):
    case = source(affine=LPS)
    content = bytearray(case.image.read_bytes())
    change(content)
    case.image.write_bytes(content)
    assert convert(case, file_ending=".nii")["image"]["written"] == "encoded"


def test_record_tells_volumes_and_attenuation(source, convert, ct, mask):
    record = convert(source())
    liver, tumour = np.count_nonzero(mask == 1), np.count_nonzero(mask == 2)
    assert record["label"]["voxels"] == {"background": mask.size - liver - tumour, "liver": liver, "tumour": tumour}
    assert record["label"]["ml"] == {"liver": pytest.approx(liver * 0.0016), "tumour": pytest.approx(tumour * 0.0016)}
    assert record["label"]["mean_hu"]["tumour"] == pytest.approx(ct[mask == 2].mean(), abs=0.01)


def test_sources_are_named_with_their_hashes(source, convert, tmp_path):
    case = source()
    record = convert(case)
    expected = hashlib.sha256(case.image.read_bytes()).hexdigest()
    assert record["source"]["image"] == [{"file": "image.nii", "sha256": expected}]


def test_a_private_source_is_not_named(source, convert):
    record = convert(source(), private=True)
    assert [set(entry) for entry in record["source"]["image"] + record["source"]["label"]] == [{"sha256"}, {"sha256"}]


def test_a_test_case_without_label_goes_to_images_ts(source, convert, folder):
    record = convert(source(label=None, test=True))
    assert record["label"] is None
    assert files(folder) == ["imagesTs/case_0000.nii.gz"]


def test_an_implausible_attenuation_is_warned_about(source, convert, ct):
    record = convert(source(image=(ct.astype(np.int32) * 10 + 9000).astype(np.int16)))
    assert any("which no tissue has" in warning for warning in record["warnings"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_holes_is_refused(source, convert, folder, ct, value):
    image = ct.astype(np.float32)
    image[3, 4, 5] = value
    with pytest.raises(CaseError, match="1 voxels that are not finite numbers"):
        convert(source(image=image))
    assert not files(folder)


def test_a_failing_label_leaves_no_image_behind(source, convert, folder, mask):
    mask[0, 0, 0] = 9
    with pytest.raises(CaseError, match="nothing explains"):
        convert(source(label=mask))
    assert not files(folder)


def test_spacing_from_outside_replaces_that_of_the_header(source, convert, folder):
    case = source(affine=np.eye(4))
    with pytest.raises(UnknownGeometryError):
        convert(case)
    record = convert(case, spacings={"case": (0.7, 0.7, 1.6)})
    assert SimpleITK.ReadImage(str(folder / record["label"]["file"])).GetSpacing() == pytest.approx((0.7, 0.7, 1.6))
    assert any("as given" in repair for repair in record["repairs"])


def test_output_does_not_depend_on_where_it_is_written(source, convert, folder, tmp_path):
    case = source()
    first = convert(case)
    content = {name: (folder / name).read_bytes() for name in files(folder)}
    for name in content:
        (folder / name).unlink()
    assert convert(case) == first
    assert {name: (folder / name).read_bytes() for name in files(folder)} == content


def test_inspection_tells_what_a_label_map_has_to_name(source):
    case = source()
    assert inspect_case(case, SETTINGS) == "12 x 10 x 6 voxels of 0.8 x 0.8 x 2.5 mm, RAS, values 1 2"
    with pytest.raises(CaseError, match="differ in shape"):
        inspect_case(replace(case, label=source(label=np.zeros((3, 3, 3), dtype=np.uint8)).label), SETTINGS)


def test_one_scan_stored_twice_has_one_fingerprint(ct):
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps = Volume(ct, grid_from_affine(ct.shape, to_lps @ LPS, CaseLog()))
    ras = lps.reoriented("RAS")
    assert fingerprint(lps) == fingerprint(ras.reoriented("LPS"))
    assert fingerprint(lps) == fingerprint(Volume(ct.astype(np.float64), lps.grid))
    other = ct.copy()
    other[:, :, 3] += 1
    assert fingerprint(lps) != fingerprint(Volume(other, lps.grid))
