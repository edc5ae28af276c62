"""Damaged files of every format: a case ends with a sentence, or with just what the whole file would have given."""

from __future__ import annotations

import gzip
import signal
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nnunet_godc.conversion.case import CaseSettings, CaseSource, convert_case
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.problems import CaseError
from nnunet_godc.conversion.volumes import open_volume
from tests.conversion.dicom_files import make_grid, write_series

SHAPE = (9, 8, 7)
AFFINE = np.array([[-0.8, 0, 0, 11], [0, -0.9, 0, 7], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
SETTINGS = CaseSettings(LabelMap({1: "organ", 2: "tumour"}), "image", trust_headers=True)
SECONDS = 20  # far above what a case of this size takes
MEMORY = 64 * 2**20  # bytes at once; these files are of a few thousand

random = np.random.default_rng(0)
IMAGE = random.integers(-1024, 3000, SHAPE).astype(np.int16)
LABEL = (random.random(SHAPE) < 0.4).astype(np.uint8) + (random.random(SHAPE) < 0.2)


@dataclass(frozen=True)
class Format:
    """How a volume is written, and which of the file's bytes are what.

    Attributes:
        name: of the file that is damaged.
        write: writes a volume into a folder.
        compressed: the voxels are deflated, with a checksum.
        header: bytes of the header; None where the voxels are not in this file, or nothing is known.
        adler: the checksum is Adler-32, a sum: in a mask of few values, changes cancel each other out.
    """

    name: str
    write: Callable[[Path, NDArray[Any]], None]
    compressed: bool
    header: Callable[[bytes], int]
    adler: bool = False


def write_nifti(name: str, image_class: type) -> Callable[[Path, NDArray[Any]], None]:
    return lambda folder, voxels: nibabel.save(image_class(voxels, AFFINE), folder / name)


def write_itk(name: str, *, compress: bool) -> Callable[[Path, NDArray[Any]], None]:
    def write(folder: Path, voxels: NDArray[Any]) -> None:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
        image.SetSpacing((0.8, 0.9, 2.5))
        image.SetOrigin((-11.0, -7.0, 30.0))
        SimpleITK.WriteImage(image, str(folder / name), compress)

    return write


def after(mark: bytes) -> Callable[[bytes], int]:
    return lambda content: content.index(mark) + len(mark)


def all_of(content: bytes) -> int:
    return len(content)


LOCAL = b"LOCAL\n"
FORMATS = [
    Format("a.nii", write_nifti("a.nii", nibabel.Nifti1Image), False, lambda content: 352),
    Format("a.nii.gz", write_nifti("a.nii.gz", nibabel.Nifti1Image), True, all_of),
    Format("b.nii", write_nifti("b.nii", nibabel.Nifti2Image), False, lambda content: 544),
    Format("a.nrrd", write_itk("a.nrrd", compress=False), False, after(b"\n\n")),
    Format("b.nrrd", write_itk("b.nrrd", compress=True), True, after(b"\n\n")),
    Format("a.nhdr", write_itk("a.nhdr", compress=False), False, all_of),
    Format("a.raw", write_itk("a.nhdr", compress=False), False, lambda content: 0),
    Format("b.nhdr", write_itk("b.nhdr", compress=True), False, all_of),
    Format("b.raw.gz", write_itk("b.nhdr", compress=True), True, all_of),
    Format("a.mha", write_itk("a.mha", compress=False), False, after(LOCAL)),
    Format("b.mha", write_itk("b.mha", compress=True), True, after(LOCAL), adler=True),
    Format("a.mhd", write_itk("a.mhd", compress=False), False, all_of),
    Format("a.raw", write_itk("a.mhd", compress=False), False, lambda content: 0),
    Format("b.zraw", write_itk("b.mhd", compress=True), True, all_of, adler=True),
]
EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
EVERY_ROLE = pytest.mark.parametrize("role", ["image", "label"])


@contextmanager
def bounded() -> Iterator[None]:
    """Fails a test that hangs or takes far more memory than its files are large."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak < MEMORY


def convert(source: CaseSource, root: Path) -> dict[str, NDArray[Any]] | None:
    """The converted arrays by role, or None where the case was refused; anything else is an error of the test."""
    out = root / "out"
    for part in ("imagesTr", "labelsTr"):
        (out / part).mkdir(parents=True)
    try:
        with bounded():
            convert_case(source, SETTINGS, root, out)
    except CaseError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert str(root) not in refused
        assert [path for path in out.rglob("*") if path.is_file()] == []
        return None
    return {
        "image": nibabel.load(out / "imagesTr" / "case_0000.nii.gz").get_fdata(),
        "label": nibabel.load(out / "labelsTr" / "case.nii.gz").get_fdata(),
    }


def convert_damaged(form: Format, role: str, damage: Callable[[bytes], bytes]) -> dict[str, NDArray[Any]] | None:
    """Writes an image and a label, damages a file of one of them, and converts the case."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "source").mkdir()
        (root / "other").mkdir()
        damaged, other = (IMAGE, LABEL) if role == "image" else (LABEL, IMAGE)
        form.write(root / "source", damaged)
        write_nifti("other.nii", nibabel.Nifti1Image)(root / "other", other)
        path = root / "source" / form.name
        path.write_bytes(damage(path.read_bytes()))
        volume = next(
            path
            for path in sorted((root / "source").iterdir())
            if path.name.endswith((".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"))
        )
        other_path = root / "other" / "other.nii"
        image, label = (volume, other_path) if role == "image" else (other_path, volume)
        return convert(CaseSource("case", image, label), root)


def arranged_as(found: NDArray[Any], truth: NDArray[Any]) -> int:
    """How many voxels differ, with the axes in the order and direction that suit best: headers may say any."""
    fewest = truth.size
    for order in permutations(range(3)):
        turned = found.transpose(order)
        if turned.shape == truth.shape:
            for flips in product((slice(None), slice(None, None, -1)), repeat=3):
                fewest = min(fewest, int(np.count_nonzero(turned[flips] != truth)))
    return fewest


# Which have a checksum over the voxels, in the file that is damaged.
CHECKED = [form for form in FORMATS if form.compressed and form.name != "b.nhdr"]


def run_check(examples: int, form: Format, role: str) -> None:
    """Flips up to three bits of what the checksum is over."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(places=st.lists(st.floats(0, 1), min_size=1, max_size=3), bit=st.integers(0, 7))
    def examine(places: list[float], bit: int) -> None:
        def flip(content: bytes) -> bytes:
            damaged = bytearray(content)
            first = 0 if form.header is all_of else form.header(content)
            for place in places:
                damaged[first + round(place * (len(content) - 1 - first))] ^= 1 << bit
            return bytes(damaged)

        found = convert_damaged(form, role, flip)
        if found is not None and not (form.adler and role == "label"):
            assert arranged_as(found["image"], IMAGE) == 0
            assert arranged_as(found["label"], LABEL) == 0

    examine()


@pytest.mark.parametrize("form", CHECKED, ids=lambda form: form.name)
@EVERY_ROLE
def test_flipped_bits_under_a_checksum_are_noticed(form: Format, role: str):
    run_check(20, form, role)


@pytest.mark.slow
@pytest.mark.parametrize("form", CHECKED, ids=lambda form: form.name)
@EVERY_ROLE
def test_many_flipped_bits_under_a_checksum_are_noticed(form: Format, role: str):
    run_check(120, form, role)


@EVERY_FORMAT
@EVERY_ROLE
def test_a_file_that_was_not_damaged_is_converted(form: Format, role: str):
    """Else the other tests would pass with readers that refuse everything."""
    found = convert_damaged(form, role, lambda content: content)
    assert found is not None
    assert arranged_as(found["image"], IMAGE) == 0
    assert arranged_as(found["label"], LABEL) == 0


@EVERY_FORMAT
@EVERY_ROLE
def test_a_file_that_ends_early_is_refused(form: Format, role: str):
    for kept in (0, 1, 2, 40, 100, 150, -100, -8, -2, -1):
        # The last line end of a header that stands alone is of no use to anyone.
        assert convert_damaged(form, role, lambda content, kept=kept: content.rstrip(b"\n")[:kept]) is None, kept


@EVERY_FORMAT
@pytest.mark.parametrize("content", [b"", b"\0" * 2000, b"\xff" * 2000, b"\x1f\x8b" + b"\0" * 500, b"NRRD0004\n" * 99])
def test_rubbish_is_refused(form: Format, content: bytes):
    assert convert_damaged(form, "image", lambda _: content) is None


@pytest.mark.parametrize(
    # What follows a header that stands alone is another line.
    "form",
    [form for form in FORMATS if form.compressed or form.header is not all_of],
    ids=lambda form: form.name,
)
def test_bytes_at_the_end_that_nobody_wrote_are_refused(form: Format):
    assert convert_damaged(form, "image", lambda content: content + b"\x01" * 40) is None


def convert_damaged_series(damage: Callable[[bytes], bytes]) -> dict[str, NDArray[Any]] | None:
    """Damages one slice of a DICOM series."""
    grid = make_grid(SHAPE, spacing=(0.8, 0.9, 2.5), origin=(-11.0, -7.0, 30.0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_series(root / "source", IMAGE, grid)
        files[3].write_bytes(damage(files[3].read_bytes()))
        write_nifti("label.nii", nibabel.Nifti1Image)(root, LABEL)
        return convert(CaseSource("case", root / "source", root / "label.nii"), root)


def run_check_of_series(examples: int) -> None:
    pixels = SHAPE[0] * SHAPE[1] * 2  # bytes at the end of a file

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(in_header=st.booleans(), places=st.lists(st.floats(0, 1), min_size=1, max_size=3), bit=st.integers(0, 7))
    def examine(in_header: bool, places: list[float], bit: int) -> None:
        def flip(content: bytes) -> bytes:
            damaged = bytearray(content)
            first, last = (0, len(content) - pixels - 1) if in_header else (len(content) - pixels, len(content) - 1)
            for place in places:
                damaged[first + round(place * (last - first))] ^= 1 << bit
            return bytes(damaged)

        found = convert_damaged_series(flip)
        # A header's numbers may say anything: a slope, an intercept, a position. Nothing can tell.
        if found is not None and not in_header:
            assert arranged_as(found["image"], IMAGE) <= len(places)

    examine()


def test_a_dicom_series_with_flipped_bits_ends_in_a_sentence_or_in_a_volume():
    run_check_of_series(60)


@pytest.mark.slow
def test_a_dicom_series_with_many_flipped_bits_ends_in_a_sentence_or_in_a_volume():
    run_check_of_series(250)


def test_a_dicom_series_is_converted_if_nothing_is_damaged():
    found = convert_damaged_series(lambda content: content)
    assert found is not None
    assert arranged_as(found["image"], IMAGE) == 0


@pytest.mark.parametrize("kept", [0, 1, 100, 128, 131, 132, 133, 200, 300, 500, -200, -100, -2, -1])
def test_a_dicom_slice_that_ends_early_is_refused(kept: int):
    assert convert_damaged_series(lambda content: content[:kept]) is None


def put(place: int, form: str, *values: float) -> Callable[[bytes], bytes]:
    """Writes numbers into a file."""
    packed = struct.pack(form, *values)
    return lambda content: content[:place] + packed + content[place + len(packed) :]


@pytest.mark.parametrize(
    "damage",
    [
        put(40, "<8h", 3, 9, 8, 6, 1, 1, 1, 1),
        put(40, "<8h", 3, 9, 8, 8, 1, 1, 1, 1),
        put(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1),
        put(40, "<8h", 3, -9, -8, 7, 1, 1, 1, 1),
        put(40, "<8h", 3, 0, 8, 7, 1, 1, 1, 1),
        put(40, "<8h", 2, 9, 56, 1, 1, 1, 1, 1),
        put(40, "<8h", -1, 9, 8, 7, 1, 1, 1, 1),
        put(70, "<2h", 16, 16),
        put(70, "<2h", 128, 24),
        put(70, "<2h", 9999, 16),
        put(108, "<f", 100),
        put(108, "<f", -352),
        put(108, "<f", float("nan")),
        put(108, "<f", float("inf")),
        put(108, "<f", 1e30),
        put(280, "<12f", *[float("nan")] * 12),
        put(280, "<12f", *[1e38] * 12),
        put(344, "<4s", b"ni1\0"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_headers_that_lie_are_refused(damage: Callable[[bytes], bytes], name: str):
    form = next(form for form in FORMATS if form.name == name)

    def damage_file(content: bytes) -> bytes:
        return gzip.compress(damage(gzip.decompress(content))) if form.compressed else damage(content)

    assert convert_damaged(form, "image", damage_file) is None


def test_zeros_without_end_are_refused_without_room_being_made_for_them(tmp_path: Path):
    """A few hundred kilobytes that inflate to 200 megabytes."""
    bomb = gzip.compress(bytes(200 * 2**20), 1)
    for name in ("a.nii.gz", "b.nrrd", "b.mha", "b.raw.gz", "b.zraw"):
        form = next(form for form in FORMATS if form.name == name)

        def with_bomb(content: bytes, form: Format = form) -> bytes:
            if form.name == "a.nii.gz":
                return gzip.compress(gzip.decompress(content)[:352]) + bomb
            header = 0 if form.header is all_of else form.header(content)
            return content[:header] + bomb

        assert convert_damaged(form, "image", with_bomb) is None, name


@pytest.mark.parametrize("name", ["a.nii", "b.nii", "a.nrrd", "a.mha"])
def test_a_header_that_asks_for_the_largest_volume_allocates_nothing(tmp_path: Path, name: str):
    form = next(form for form in FORMATS if form.name == name)
    form.write(tmp_path, IMAGE)
    path = tmp_path / name
    content = path.read_bytes().replace(b"9 8 7", b"99999999 99999999 99999999")
    if name == "a.nii":
        content = put(42, "<3h", 32767, 32767, 32767)(content)
    elif name == "b.nii":
        content = put(24, "<3q", 2**62, 2**62, 2**62)(content)
    path.write_bytes(content)
    with bounded(), pytest.raises(CaseError, match=r"more|damaged"):
        open_volume(path)
