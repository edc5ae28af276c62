"""Nothing that tells who a patient is leaves a private collection: by no file, no message and no error."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_godc.commands import find_command
from tests.conversion.dicom_files import write_segmentation, write_series, write_structure_set
from tests.dataset_conversion.layouts import Scan, make_scan, write_itk, write_nifti

NAME, IDENTITY, BORN = "Wolkenstein^Oswald", "KH-SUED-0815-4711", "19370228"
# The beginning of all UIDs, so that parts of them are found as well.
UID = "1.2.276.0.7230010.99.4711"
# How a file system, a path or a log may hold any of it.
SECRETS = ["Wolkenstein", "Oswald", "KH-SUED", "0815", "19370228", "1937-02-28", UID, "Südtirol", "Geheim"]
SHAPE = (14, 12, 10)


def change_identity(dataset: pydicom.Dataset, k: int | None = None) -> None:
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, IDENTITY, BORN
    dataset.InstitutionName = "Klinik Südtirol".encode().decode("latin-1")
    dataset.SeriesDescription = dataset.StudyDescription = "Geheim, Oswald Wolkenstein"
    for number, key in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")):
        setattr(dataset, key, f"{UID}.{number}")
    if k is not None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.9.{k + 1}"


def make_case(seed: int) -> Scan:
    scan = make_scan(seed, shape=SHAPE)
    return scan.with_label(scan.label.voxels == 2)


class Hospital:
    """Writes scans under their patients' names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.table = ["image,mask,patient"]

    def place(self, kind: str, label: str) -> Path:
        path = self.root / kind / f"Wolkenstein, Oswald ({label}) 19370228"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def series(self, label: str, scan: Scan, **options) -> list[Path]:
        return write_series(
            self.place("images", label), scan.image.voxels, scan.grid, dtype="<i2", change=change_identity, **options
        )

    def pair(self, image: Path, mask: Path) -> None:
        self.table.append(f'"{image}","{mask}",{IDENTITY}')


def write_good_cases(hospital: Hospital) -> None:
    scan = make_case(1)
    image = write_itk(hospital.place("images", "nrrd").with_suffix(".nrrd"), scan.image, patient_name=NAME)
    mask = hospital.place("masks", "nii").with_suffix(".nii.gz")
    # These fields of a NIfTI header are free text; the file needs no other change, and must not be linked.
    write_nifti(mask, scan.label, descrip=NAME.encode(), db_name=IDENTITY.encode(), aux_file=b"Oswald.dcm")
    hospital.pair(image, mask)

    scan = make_case(2)
    image = hospital.place("images", "ready").with_suffix(".nii.gz")
    write_nifti(image, scan.image, descrip=NAME.encode(), intent_name=b"Wolkenstein")
    hospital.pair(image, write_itk(hospital.place("masks", "mha").with_suffix(".mha"), scan.label))

    scan = make_case(3)
    files = hospital.series("seg", scan)
    mask = hospital.place("masks", "seg").with_suffix(".dcm")
    write_segmentation(mask, files, {"tumour": scan.label.voxels > 0}, change=change_identity)
    hospital.pair(files[0].parent, mask)

    scan = make_case(4)
    files = hospital.series("rtstruct", scan)
    mask = hospital.place("masks", "rtstruct").with_suffix(".dcm")
    corners = np.array([[3, 4], [9, 4], [9, 8], [3, 8]])
    contours = [(scan.grid.affine @ np.column_stack([corners, np.full(4, k), np.ones(4)]).T)[:3].T for k in (3, 4)]
    write_structure_set(mask, files, {"Tumor": contours}, change=change_identity)
    hospital.pair(files[0].parent, mask)


def write_broken_cases(hospital: Hospital) -> None:
    mask = write_itk(hospital.place("masks", "any").with_suffix(".nrrd"), make_case(5).label)

    def broken(label: str) -> list[Path]:
        files = hospital.series(label, make_case(5))
        hospital.pair(files[0].parent, mask)
        return files

    broken("gap")[4].unlink()
    empty, cut, no_position, bad_number, two = (broken(label) for label in ("empty", "cut", "nowhere", "number", "two"))
    empty[2].write_bytes(b"")
    cut[2].write_bytes(cut[2].read_bytes()[:-100])
    dataset = pydicom.dcmread(no_position[2])
    del dataset.ImagePositionPatient
    dataset.save_as(no_position[2])
    # A value that is none where pydicom quotes it in a warning or an exception.
    content = bad_number[2].read_bytes()
    place = content.index(b"\x20\x00\x11\x00IS")  # SeriesNumber
    bad_number[2].write_bytes(content[: place + 8] + b"Os" + content[place + 10 :])
    hospital.series("two", make_case(6), number=8)
    assert len(list(two[0].parent.iterdir())) == 2 * SHAPE[2]

    image = hospital.place("images", "no dicom").with_suffix(".nii.gz")
    image.write_bytes(NAME.encode() * 50)
    hospital.pair(image, mask)
    image = write_itk(hospital.place("images", "cut").with_suffix(".mha"), make_case(5).image)
    image.write_bytes(image.read_bytes()[:-100])
    hospital.pair(image, mask)
    image = hospital.place("images", "lost voxels").with_suffix(".mhd")
    write_itk(image, make_case(5).image)
    image.with_suffix(".zraw").unlink()
    hospital.pair(image, mask)
    scan = make_case(7)
    files = hospital.series("foreign", scan)
    mask = hospital.place("masks", "foreign").with_suffix(".dcm")
    write_segmentation(mask, files, {"Oswald's liver": scan.label.voxels > 0}, change=change_identity)
    mask.write_bytes(mask.read_bytes()[:-400])
    hospital.pair(files[0].parent, mask)


def convert(source: Path, tmp_path: Path, *options: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *(find_command("nnunet-godc"), "convert", "pancreas", "-i", source, "-o", tmp_path / "raw", "-np", "1"),
            *("--csv", tmp_path / "pairs.csv", "--test-share", "0", *options),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def told(content: bytes) -> list[str]:
    """The secrets that are in `content`, in whatever encoding of text."""
    return [
        secret
        for secret in SECRETS
        if any(
            variant.encode(encoding) in content
            for variant in (secret, secret.lower(), secret.upper())
            for encoding in ("utf-8", "latin-1", "utf-16-le")
        )
    ]


def without_paths(printed: bytes) -> bytes:
    """Without the files at fault, in brackets at the ends of lines: they are told to their owner, and nobody else."""
    return re.sub(rb" \[[^\]]*\]$", b"", printed, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    hospital = Hospital(tmp_path_factory.mktemp("scans") / "Südtirol Geheim")
    write_good_cases(hospital)
    write_broken_cases(hospital)
    return hospital


def test_nothing_private_is_written_or_printed(hospital: Hospital, tmp_path: Path):
    (tmp_path / "pairs.csv").write_text("\n".join(hospital.table), encoding="utf-8")
    assert told((tmp_path / "pairs.csv").read_bytes())  # or the search itself would be at fault
    finished = convert(hospital.root, tmp_path)
    assert finished.returncode == 1
    assert b"4 training and 0 test cases" in finished.stdout, finished.stderr.decode()
    assert finished.stderr.count(b"\n  PANC_") == 10, finished.stderr.decode()
    assert told(finished.stdout + without_paths(finished.stderr)) == []
    written = [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]
    assert len(written) == 4 + 4 + 2
    for path in written:
        assert told(os.fsencode(path.relative_to(tmp_path))) == []
        content = path.read_bytes()
        assert told(content) == [], path.name
        if path.name.endswith(".gz"):
            assert told(gzip.decompress(content)) == [], path.name
        assert not path.is_symlink()

    # A dry run reads the same headers.
    finished = convert(hospital.root, tmp_path, "-d", "777", "--dry-run")
    assert b"PANC_0001" in finished.stdout
    # But for the names of regions, without which nobody could write a label map.
    listed = finished.stdout.replace(b"Oswald's liver", b"")
    assert told(listed + without_paths(finished.stderr)) == []

    # The key file, on demand, is the one place where names stand.
    finished = convert(hospital.root, tmp_path, "--key-file", tmp_path / "keys.csv")
    assert told(finished.stdout + without_paths(finished.stderr)) == []
    assert "Wolkenstein" in told((tmp_path / "keys.csv").read_bytes())
    for path in (tmp_path / "raw").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert told(content + (gzip.decompress(content) if path.name.endswith(".gz") else b"")) == [], path.name


def test_a_source_without_cases_is_named_only_as_the_user_gave_it(hospital: Hospital, tmp_path: Path):
    """The user's own argument may be said back to them; what lies in the folder may not."""
    source = tmp_path / "link"
    source.symlink_to(hospital.root)
    (tmp_path / "pairs.csv").write_text("image,mask\nnone.nii,none.nii\n")
    finished = convert(source, tmp_path)
    assert finished.returncode == 1
    assert told(finished.stdout + finished.stderr) == []
    finished = subprocess.run(
        [
            *(find_command("nnunet-godc"), "convert", "pancreas", "-i", source, "-o", tmp_path / "raw"),
            *("--image-pattern", "scans/{case}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 1
    assert told(finished.stdout + finished.stderr) == []
