"""In-house collections: which image goes with which mask, whose scan it is, and under which new name it goes on."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_godc.conversion.case_tables import case_name
from nnunet_godc.conversion.collection import check_case_name
from nnunet_godc.conversion.dicom import is_dicom
from nnunet_godc.conversion.files import is_hidden, visible_files
from nnunet_godc.conversion.formats import VOLUME_ENDINGS, ending_of
from nnunet_godc.errors import UserError
from nnunet_godc.replacing import replacing
from nnunet_godc.tables import read_table

PLACEHOLDER = re.compile(r"\{(case|patient)\}|\*\*/|\*|\?")
KEY_COLUMNS = ("case", "patient", "part", "image", "mask")
Fitting = dict[str, list[tuple[Path, str]]]  # by {case}: paths, each with its {patient}


@dataclass(frozen=True)
class Pair:
    """An image and its mask as they lie in the source.

    Attributes:
        image: a volume file or a folder with a DICOM series.
        mask: a volume file, DICOM-SEG or RTSTRUCT, or a folder with one; None where a test case has none.
        patient: what tells the patient, in the collection's own words; an empty string where nothing does.
        name: the case's name, where the user gives one.
        test: True or False where the user says so, else None.
    """

    image: Path
    mask: Path | None
    patient: str = ""
    name: str = ""
    test: bool | None = None


def pairs_by_pattern(root: Path, image_pattern: str, mask_pattern: str) -> tuple[list[Pair], list[str]]:
    """Images and masks whose paths fit the patterns with the same ``{case}``, and a problem for those that stay alone.

    A pattern is a path below `root` without the file's ending: ``{case}`` stands for a part of a name, ``{patient}``
    too, ``*`` and ``?`` as in a shell, ``**/`` for folders. ``images/{case}`` fits images/017.nii.gz, images/017.nrrd,
    and the folder images/017 with a DICOM series in it or below it. What both patterns fit belongs to the one that says
    more of it: of 017.nii and 017_mask.nii, ``{case}_mask`` takes the second, though ``{case}`` fits it too.

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
    problems = []
    alone = len(images.keys() - masks.keys())
    if alone:
        problems.append(f"{alone} images have no mask; --key-file lists them")
    alone = len(masks.keys() - images.keys())
    if alone:
        problems.append(f"{alone} masks have no image; mend the patterns, or move them away")
    twice = sum(len(paths) > 1 for paths in (*images.values(), *masks.values()))
    if twice:
        problems.append(f"{twice} cases fit a pattern several times; make the patterns narrower")
    pairs = [
        Pair(images[case][0][0], masks[case][0][0], patient=images[case][0][1])
        for case in sorted(images.keys() & masks.keys(), key=_natural)
        if len(images[case]) == len(masks[case]) == 1
    ]
    return pairs, problems


def pairs_by_table(root: Path, table: Path) -> tuple[list[Pair], list[str]]:
    """Images and masks that a CSV names: columns image, mask, and as one likes case, patient, part (train or test).

    Paths are relative to `root`, or absolute.

    Raises:
        UserError: the table is no such table.
    """
    pairs, problems = [], []
    for row in read_table(table, required=("image",), optional=("mask", "case", "patient", "part")):
        part = row["part"].lower()
        if part not in ("", "train", "test"):
            raise UserError(f"{row.where}: part is {row['part']!r}; it is train or test")
        image = root / row["image"]
        mask = root / row["mask"] if row["mask"] else None
        where = f"{table.name}, line {row.line}"
        if mask is None and part != "test":
            problems.append(f"{where}: there is no mask, and part is not test")
        elif missing := [what for what, path in (("image", image), ("mask", mask)) if path and not path.exists()]:
            problems.append(f"{where}: the {' and the '.join(missing)} does not exist")
        else:
            test = None if not part else part == "test"
            pairs.append(Pair(image, mask, row["patient"], case_name(row) if row["case"] else "", test))
    return pairs, problems


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
    compiled = re.compile(expression + re.escape(pattern[end:]))
    fitting: Fitting = {}
    for name, path in sorted(candidates.items()):
        if fits := compiled.fullmatch(name):
            groups = fits.groupdict()
            fitting.setdefault(groups["case"], []).append((path, groups.get("patient") or ""))
    return fitting


def _said(pattern: str) -> int:
    """How many characters of a path a pattern lays down."""
    return len(PLACEHOLDER.sub("", pattern))


def _without(fitting: Fitting, taken: Fitting) -> Fitting:
    elsewhere = {path for paths in taken.values() for path, _ in paths}
    left = {case: [found for found in paths if found[0] not in elsewhere] for case, paths in fitting.items()}
    return {case: paths for case, paths in left.items() if paths}


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sorts scan2 before scan10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text)]
