"""In-house collections: which image goes with which mask, whose scan it is, and under which new name it goes on."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.collection import case_name, check_case_name
from nnunet_godc.conversion.dicom import SeriesChoice, is_dicom, patient_of
from nnunet_godc.conversion.files import VOLUME_ENDINGS, ending_of, visible_files
from nnunet_godc.conversion.problems import Problem, listed
from nnunet_godc.csv_files import Row, read_table
from nnunet_godc.errors import UserError

PLACEHOLDER = re.compile(r"\{(case|patient|label)\}|\*\*/|\*|\?")
KEY_COLUMNS = ("case", "patient", "part", "image", "mask")
YES, NO = ("yes", "y", "true", "1", "x", "test"), ("no", "n", "false", "0", "train")
# What anonymisers put in the place of a PatientID.
NOBODY = ("", "anonymous", "anonymized", "anonymised", "anonym", "anon", "unknown", "none", "patient", "test")


@dataclass(frozen=True)
class _Fit:
    """A path that fits a pattern, with what its placeholders stand for."""

    path: Path
    patient: str
    label: str


_Fitting = dict[str, list[_Fit]]  # by {case}


def pairs_by_pattern(root: Path, image_pattern: str, mask_pattern: str) -> tuple[list[CaseSource], list[Problem]]:
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
    said_of_image, said_of_mask = (len(PLACEHOLDER.sub("", pattern)) for pattern in (image_pattern, mask_pattern))
    if said_of_image < said_of_mask:
        images = _without(images, masks)
    elif said_of_image > said_of_mask:
        masks = _without(masks, images)
    several = "{label}" in mask_pattern
    twice = {
        case: fits
        for fitting in (masks, images)
        for case, fits in fitting.items()
        if len({fit.label for fit in fits}) < len(fits)
    }
    problems = []
    for cases, fitting, sentence in (
        (images.keys() - masks.keys(), images, "images have no mask; name it, or move the image away"),
        (masks.keys() - images.keys(), masks, "masks have no image; fix the patterns, or move them away"),
        (twice.keys(), twice, "cases fit a pattern several times; make the patterns narrower"),
    ):
        if cases:
            paths = [_relative(fitting[case][0].path, root) for case in sorted(cases, key=_natural)]
            problems.append(Problem(f"{len(cases)} {sentence}", listed(paths, 5)))
    pairs = [
        CaseSource(
            "",
            images[case][0].path,
            None if several else masks[case][0].path,
            test=None,
            patient=images[case][0].patient,
            masks=tuple((fit.label, fit.path) for fit in masks[case]) if several else (),
        )
        for case in sorted((images.keys() & masks.keys()) - twice.keys(), key=_natural)
    ]
    return pairs, problems


def pairs_by_table(root: Path, table: Path) -> tuple[list[CaseSource], list[Problem]]:
    """Images and masks that a CSV names: columns image, mask, and as one likes case, patient, series, test.

    The pairs' cases have the names and the series that are given, and no name or any series where nothing is. Paths are
    relative to `root`, or absolute. A mask may be a folder with a file for every label. In the place of test
    (yes or no), part may say train or test.

    Raises:
        UserError: the table is no such table.
    """
    pairs, problems = [], []
    for row in read_table(table, required=("image",), optional=("mask", "case", "patient", "series", "test", "part")):
        test = _is_test(row)
        try:
            series = series_choice(row["series"] or "only")
        except ValueError as error:
            raise UserError(f"{row.where}: {error}") from None
        name = case_name(row) if row["case"] else ""
        image = _existing(root / row["image"])
        mask = _existing(root / row["mask"]) if row["mask"] else None
        missing = [what for what, path in (("image", image), ("mask", mask)) if path and not path.exists()]
        if mask is None and not test:
            problem = "there is no mask, and it is not said to be for testing"
        elif missing:
            problem = f"the {' and the '.join(missing)} does not exist"
        else:
            pairs.append(CaseSource(name, image, mask, test=test, patient=row["patient"], series=series))
            continue
        named = ", ".join(filter(None, (row["image"], row["mask"])))
        problems.append(Problem(f"{table.name}, line {row.line}: {problem}", named))
    return pairs, problems


def _is_test(row: Row) -> bool | None:
    """What the columns test and part say; None where neither says anything."""
    said = set()
    for column, says, words in (("part", "train or test", (("test",), ("train",))), ("test", "yes or no", (YES, NO))):
        if word := row[column].lower():
            if word not in (*words[0], *words[1]):
                raise UserError(f"{row.where}: {column} is {row[column]!r}; it is {says}")
            said.add(word in words[0])
    if len(said) > 1:
        raise UserError(f"{row.where}: test and part contradict each other; take one of the columns out")
    return said.pop() if said else None


def series_choice(text: str) -> SeriesChoice:
    """``only``, ``largest`` or a series number. Raises ValueError for anything else."""
    choices: dict[str, SeriesChoice] = {"only": "only", "largest": "largest"}
    try:
        return choices.get(text) or int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not only, largest or a series number") from None


def with_patients(pairs: Sequence[CaseSource]) -> tuple[list[CaseSource], str]:
    """The pairs with the patients that DICOM images name, where nobody else does; and what there is to say of it.

    PatientIDs stay in memory. Those that a whole collection shares, or that anonymisers write, tell nobody apart.
    """
    ids = ["" if pair.patient or ending_of(pair.image) in VOLUME_ENDINGS else patient_of(pair.image) for pair in pairs]
    found = [name for name in ids if name.casefold() not in NOBODY]
    if not found:
        return list(pairs), ""
    if len(found) > 2 and len(set(found)) == 1:
        return list(pairs), "all DICOM scans name the same PatientID, so that it says nothing of patients"
    reported = f"patients of {len(found)} DICOM scans told apart by their PatientID: {len(set(found))} patients"
    # The mark keeps them apart from names that a user gives.
    return [
        replace(pair, patient=f"\0{name}") if name in found else pair for pair, name in zip(pairs, ids, strict=True)
    ], reported


def _existing(path: Path) -> Path:
    """The path with its accents as one character or as two, whichever is there: macOS and others differ."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        found = next((found / form for form in forms if (found / form).exists()), found / part)
    return found


def new_names(pairs: Sequence[CaseSource], prefix: str, keys: Mapping[str, str], root: Path) -> list[str]:
    """A name for every pair: the user's, else that in the key table of an earlier run, else the next free number."""
    taken = {*keys.values(), *(pair.name for pair in pairs)}
    free = (name for number in range(1, 10**9) if (name := f"{prefix}_{number:04d}") not in taken)
    return [pair.name or keys.get(_relative(pair.image, root)) or next(free) for pair in pairs]


def new_patients(pairs: Sequence[CaseSource], names: Sequence[str]) -> list[str]:
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
    path: Path, root: Path, pairs: Iterable[tuple[str, str, bool, CaseSource]], earlier: Mapping[str, str] | None = None
) -> None:
    """Write which case is which patient's scan: case, patient, part, image, mask. Only its owner may read it.

    Args:
        pairs: the case's name, its patient's made-up name, whether it is for testing, and its source.
        earlier: image to case, as an earlier table has them. Those that are not in the source now keep their lines, or
            their names would go to other scans.
    """
    absent = dict(earlier or {})
    lines = [KEY_COLUMNS]
    for name, patient, test, pair in pairs:
        image = _relative(pair.image, root)
        absent.pop(image, None)
        mask = " ".join(_relative(path, root) for path in pair.mask_paths)
        lines.append((name, patient, "test" if test else "train", image, mask))
    lines += [(name, "", "", image, "") for image, name in absent.items()]
    try:
        with atomic_write(path) as temporary:
            temporary.touch(mode=0o600, exist_ok=False)
            with temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(lines)
    except OSError as error:
        raise UserError(f"the key file {path} cannot be written: {error.strerror}") from error


def _candidates(root: Path) -> dict[str, Path]:
    """Paths below `root` without their endings: volumes, single DICOM files, and all folders above these."""
    found: dict[str, list[Path]] = defaultdict(list)
    folders: set[Path] = set()
    for file in visible_files(root):
        relative = file.relative_to(root)
        ending = ending_of(file)
        if ending in VOLUME_ENDINGS:
            found[relative.as_posix()[: -len(ending)]].append(file)
        elif not ending and is_dicom(file):
            without = relative.with_suffix("") if relative.suffix.lower() in (".dcm", ".dicom", ".ima") else relative
            found[without.as_posix()].append(file)
            folders.update(relative.parents)
    for folder in folders - {Path()}:
        found[folder.as_posix()].append(root / folder)
    # A name with two endings would be a guess: both stay, and the pattern meets them as two.
    return {
        name if len(paths) == 1 else f"{name}{ending_of(path)}": path for name, paths in found.items() for path in paths
    }


def _fitting(candidates: Mapping[str, Path], pattern: str, option: str) -> _Fitting:
    """By ``{case}``: the paths that fit, each with its ``{patient}`` and its ``{label}``."""
    if "{case}" not in pattern:
        raise UserError(f"{option} {pattern!r} has no {{case}} in it, such as 'images/{{case}}'")
    expression, end, seen = "", 0, set()
    for match in PLACEHOLDER.finditer(pattern):
        expression += re.escape(pattern[end : match.start()])
        if name := match[1]:
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            expression += {"**/": "(?:.+/)?", "*": "[^/]*", "?": "[^/]"}[match[0]]
        end = match.end()
    compiled = re.compile(unicodedata.normalize("NFC", expression + re.escape(pattern[end:])))
    fitting: _Fitting = defaultdict(list)
    for name, path in sorted(candidates.items()):
        if fits := compiled.fullmatch(unicodedata.normalize("NFC", name)):
            groups = fits.groupdict()
            fitting[groups["case"]].append(_Fit(path, groups.get("patient") or "", groups.get("label") or ""))
    if not fitting:
        raise UserError(f"{option} {pattern!r} fits none of the {len(candidates)} volumes and folders in the source")
    return dict(fitting)


def _without(fitting: _Fitting, taken: _Fitting) -> _Fitting:
    elsewhere = {fit.path for fits in taken.values() for fit in fits}
    left = {case: [fit for fit in fits if fit.path not in elsewhere] for case, fits in fitting.items()}
    return {case: fits for case, fits in left.items() if fits}


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sorts scan2 before scan10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text)]
