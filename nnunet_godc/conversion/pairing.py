"""In-house collections: which image goes with which mask, whose scan it is, and under which new name it goes on."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_godc.conversion.case import NamedMasks, SeriesChoice
from nnunet_godc.conversion.case_tables import case_name
from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.conversion.dicom.series import is_dicom, patient_of
from nnunet_godc.conversion.files import is_hidden, visible_files
from nnunet_godc.conversion.formats import VOLUME_ENDINGS, ending_of
from nnunet_godc.conversion.problems import Problem
from nnunet_godc.errors import UserError
from nnunet_godc.replacing import replacing
from nnunet_godc.tables import read_table

PLACEHOLDER = re.compile(r"\{(case|patient|label)\}|\*\*/|\*|\?")
TOLD = 5  # paths in a message
KEY_COLUMNS = ("case", "patient", "part", "image", "mask")
Fitting = dict[str, list[tuple[Path, str, str]]]  # by {case}: paths, each with its {patient} and its {label}
YES, NO = ("yes", "y", "true", "1", "x", "test"), ("no", "n", "false", "0", "train")
# What anonymisers put in the place of a PatientID.
NOBODY = ("", "anonymous", "anonymized", "anonymised", "anonym", "anon", "unknown", "none", "patient", "test")


@dataclass(frozen=True)
class Pair:
    """An image and its mask as they lie in the source.

    Attributes:
        image: a volume file or a folder with a DICOM series.
        mask: a volume file, DICOM-SEG or RTSTRUCT, or a folder with one; None where a test case has none.
        masks: in its place, the masks of several labels: name and file.
        patient: what tells the patient, in the collection's own words; an empty string where nothing does.
        name: the case's name, where the user gives one.
        test: True or False where the user says so, else None.
        series: which of several DICOM series, where the user says so.
    """

    image: Path
    mask: Path | None
    patient: str = ""
    name: str = ""
    test: bool | None = None
    masks: NamedMasks = ()
    series: SeriesChoice | None = None


def pairs_by_pattern(root: Path, image_pattern: str, mask_pattern: str) -> tuple[list[Pair], list[Problem]]:
    """Images and masks whose paths fit the patterns with the same ``{case}``, and a problem for those that stay alone.

    A pattern is a path below `root` without the file's ending: ``{case}`` stands for a part of a name, ``{patient}``
    too, ``*`` and ``?`` as in a shell, ``**/`` for folders. ``images/{case}`` fits images/017.nii.gz, images/017.nrrd,
    and the folder images/017 with a DICOM series in it or below it. With ``{label}`` in the mask's pattern, a case has
    a mask for every label: ``masks/{case}/{label}`` fits masks/017/liver.nii.gz and masks/017/tumour.nii.gz.

    What both patterns fit belongs to the one that says more of it: of 017.nii and 017_mask.nii, ``{case}_mask`` takes
    the second, though ``{case}`` fits it too.

    Raises:
        UserError: a pattern without ``{case}``, or that fits nothing.
    """
    candidates = _candidates(root)
    images = _fitting(candidates, image_pattern, "--image-pattern")
    masks = _fitting(candidates, mask_pattern, "--mask-pattern")
    for found, option, pattern in ((images, "--image-pattern", image_pattern), (masks, "--mask-pattern", mask_pattern)):
        if not found:
            raise UserError(
                f"{option} {pattern!r} fits none of the {len(candidates)} volumes and folders in the source"
            )
    if _said(image_pattern) < _said(mask_pattern):
        images = _without(images, masks)
    elif _said(image_pattern) > _said(mask_pattern):
        masks = _without(masks, images)
    several = "{label}" in mask_pattern
    problems = []

    def tell(cases: Collection[str], fitting: Fitting, sentence: str) -> None:
        if cases:
            paths = [_relative(fitting[case][0][0], root) for case in sorted(cases, key=_natural)]
            shown = ", ".join(paths[:TOLD]) + (f" and {len(paths) - TOLD} more" if len(paths) > TOLD else "")
            problems.append(Problem(f"{len(cases)} {sentence}", shown))

    tell(images.keys() - masks.keys(), images, "images have no mask; name it, or move the image away")
    tell(masks.keys() - images.keys(), masks, "masks have no image; fix the patterns, or move them away")
    twice = "cases fit a pattern several times; make the patterns narrower"
    twice_images = {case for case, found in images.items() if len(found) > 1}
    twice_masks = {case for case, found in masks.items() if len({label for _, _, label in found}) < len(found)}
    tell(twice_images, images, twice)
    tell(twice_masks - twice_images, masks, twice)
    pairs = [
        Pair(
            images[case][0][0],
            None if several else masks[case][0][0],
            patient=images[case][0][1],
            masks=tuple((label, path) for path, _, label in masks[case]) if several else (),
        )
        for case in sorted((images.keys() & masks.keys()) - twice_images - twice_masks, key=_natural)
    ]
    return pairs, problems


def pairs_by_table(root: Path, table: Path) -> tuple[list[Pair], list[Problem]]:
    """Images and masks that a CSV names: columns image, mask, and as one likes case, patient, series, test.

    Paths are relative to `root`, or absolute. A mask may be a folder with a file for every label. In the place of test
    (yes or no), part may say train or test.

    Raises:
        UserError: the table is no such table.
    """
    pairs, problems = [], []
    for row in read_table(table, required=("image",), optional=("mask", "case", "patient", "series", "test", "part")):
        part = row["part"].lower()
        if part not in ("", "train", "test"):
            raise UserError(f"{row.where}: part is {row['part']!r}; it is train or test")
        says = row["test"].lower()
        if says not in ("", *YES, *NO):
            raise UserError(f"{row.where}: test is {row['test']!r}; it is yes or no")
        if part and says and (part == "test") != (says in YES):
            raise UserError(f"{row.where}: test and part contradict each other; take one of the columns out")
        try:
            series = series_choice(row["series"]) if row["series"] else None
        except ValueError as error:
            raise UserError(f"{row.where}: {error}") from None
        test = None if not part and not says else part == "test" or says in YES
        image = _existing(root / row["image"])
        mask = _existing(root / row["mask"]) if row["mask"] else None
        where = f"{table.name}, line {row.line}"
        named = ", ".join(filter(None, (row["image"], row["mask"])))
        if mask is None and not test:
            problems.append(Problem(f"{where}: there is no mask, and it is not said to be for testing", named))
        elif missing := [what for what, path in (("image", image), ("mask", mask)) if path and not path.exists()]:
            problems.append(Problem(f"{where}: the {' and the '.join(missing)} does not exist", named))
        else:
            name = case_name(row) if row["case"] else ""
            pairs.append(Pair(image, mask, row["patient"], name, test, series=series))
    return pairs, problems


def series_choice(text: str) -> SeriesChoice:
    """``only``, ``largest`` or a series number. Raises ValueError for anything else."""
    if text == "only":
        return "only"
    if text == "largest":
        return "largest"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not only, largest or a series number") from None


def with_patients(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """The pairs with the patients that DICOM images name, where nobody else does; and what there is to say of it.

    PatientIDs stay in memory. Those that a whole collection shares, or that anonymisers write, tell nobody apart.
    """
    named = [pair.patient or (patient_of(pair.image) if _is_dicom(pair.image) else "") for pair in pairs]
    found = [name for pair, name in zip(pairs, named, strict=True) if name and not pair.patient]
    if not found:
        return list(pairs), ""
    if len(found) > 2 and len(set(found)) == 1:
        return list(pairs), "all DICOM scans name the same PatientID, so that it tells nothing of patients"
    told = f"patients of {len(found)} DICOM scans told apart by their PatientID: {len(set(found))} patients"
    # Apart from names that a user gives.
    marked = [
        pair.patient or (f"\0{name}" if name.casefold() not in NOBODY else "")
        for pair, name in zip(pairs, named, strict=True)
    ]
    return [replace(pair, patient=patient) for pair, patient in zip(pairs, marked, strict=True)], told


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or ending_of(path) not in VOLUME_ENDINGS


def _existing(path: Path) -> Path:
    """The path with its accents as one character or as two, whichever is there: macOS and others differ."""
    if path.exists():
        return path
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        found = next((found / form for form in forms if (found / form).exists()), found / part)
    return found


def new_names(pairs: Sequence[Pair], prefix: str, keys: Mapping[str, str], root: Path) -> list[str]:
    """A name for every pair: the user's, else that in the key table of an earlier run, else the next free number."""
    taken = {*keys.values(), *(pair.name for pair in pairs)}
    names, number = [], 0
    for pair in pairs:
        name = pair.name or keys.get(_relative(pair.image, root), "")
        while not name:
            number += 1
            candidate = f"{prefix}_{number:04d}"
            name = "" if candidate in taken else candidate
        names.append(name)
    return names


def new_patients(pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """A made-up name for every pair's patient: that of the patient's first case."""
    first: dict[str, str] = {}
    return [
        first.setdefault(pair.patient, name) if pair.patient else name for pair, name in zip(pairs, names, strict=True)
    ]


def read_keys(path: Path) -> dict[str, str]:
    """The key table of an earlier run: image to case. Empty if there is none.

    Raises:
        UserError: the file is something else.
    """
    if not path.exists():
        return {}
    rows = read_table(path, required=("case", "image"), optional=KEY_COLUMNS)
    return {row["image"]: check_case_name(row["case"]) for row in rows}


def write_keys(
    path: Path, root: Path, pairs: Iterable[tuple[str, str, bool, Pair]], earlier: Mapping[str, str] | None = None
) -> None:
    """Write which case is which patient's scan: case, patient, part, image, mask. Only its owner may read it.

    Args:
        pairs: the case's name, its patient's made-up name, whether it is for testing, and its source.
        earlier: image to case, as an earlier table has them. Those that are not in the source now keep their lines, or
            their names would go to other scans.
    """
    try:
        with replacing(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123
                writer = csv.writer(file)
                writer.writerow(KEY_COLUMNS)
                absent = dict(earlier or {})
                for name, patient, test, pair in pairs:
                    image, mask = _relative(pair.image, root), _relative(pair.mask, root) if pair.mask else ""
                    mask = mask or " ".join(_relative(path, root) for _, path in pair.masks)
                    absent.pop(image, None)
                    writer.writerow([name, patient, "test" if test else "train", image, mask])
                writer.writerows([name, "", "", image, ""] for image, name in absent.items())
    except OSError as error:
        raise UserError(f"the key file {path} cannot be written: {error.strerror}") from error


def _candidates(root: Path) -> dict[str, Path]:
    """Paths below `root` without their endings: volumes, single DICOM files, and all folders above these."""
    found: dict[str, list[Path]] = {}
    folders: set[Path] = set()
    for file in visible_files(root):
        relative = file.relative_to(root)
        ending = ending_of(file)
        if ending in VOLUME_ENDINGS:
            found.setdefault(relative.as_posix()[: -len(ending)], []).append(file)
        elif not ending and is_dicom(file):
            without = relative.with_suffix("") if relative.suffix.lower() in (".dcm", ".dicom", ".ima") else relative
            found.setdefault(without.as_posix(), []).append(file)
            folders.update(relative.parents)
    for folder in folders - {Path()}:
        found.setdefault(folder.as_posix(), []).append(root / folder)
    # A name with two endings would be a guess: both stay, and the pattern meets them as two.
    return {
        name if len(paths) == 1 else f"{name}{ending_of(path)}": path
        for name, paths in found.items()
        for path in paths
        if not is_hidden(path)
    }


def _fitting(candidates: Mapping[str, Path], pattern: str, option: str) -> Fitting:
    """By ``{case}``: the paths that fit, each with its ``{patient}``."""
    if "{case}" not in pattern:
        raise UserError(f"{option} {pattern!r} has no {{case}} in it, such as 'images/{{case}}'")
    expression, end, seen = "", 0, set()
    for match in PLACEHOLDER.finditer(pattern):
        expression += re.escape(pattern[end : match.start()])
        name = match[1]
        if name in seen:
            expression += f"(?P={name})"
        elif name:
            seen.add(name)
            expression += f"(?P<{name}>[^/]+?)"
        else:
            expression += {"**/": "(?:.+/)?", "*": "[^/]*", "?": "[^/]"}[match[0]]
        end = match.end()
    compiled = re.compile(unicodedata.normalize("NFC", expression + re.escape(pattern[end:])))
    fitting: Fitting = {}
    for name, path in sorted(candidates.items()):
        if fits := compiled.fullmatch(unicodedata.normalize("NFC", name)):
            groups = fits.groupdict()
            found = (path, groups.get("patient") or "", groups.get("label") or "")
            fitting.setdefault(groups["case"], []).append(found)
    return fitting


def _said(pattern: str) -> int:
    """How many characters of a path a pattern lays down."""
    return len(PLACEHOLDER.sub("", pattern))


def _without(fitting: Fitting, taken: Fitting) -> Fitting:
    elsewhere = {path for paths in taken.values() for path, _, _ in paths}
    left = {case: [found for found in paths if found[0] not in elsewhere] for case, paths in fitting.items()}
    return {case: paths for case, paths in left.items() if paths}


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sorts scan2 before scan10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text)]
