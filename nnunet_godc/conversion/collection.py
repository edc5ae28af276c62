"""What a collection is to the conversion: its cases, what their labels mean, and what tables say of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from nnunet_godc.conversion.alignment import LabelGrid
from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.files import ending_of, inside
from nnunet_godc.conversion.geometry import Triple
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.problems import Problem
from nnunet_godc.csv_files import Row, read_table, shortened
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import closest_match

# A case's name becomes file names: no separator, no leading dot, nothing that leaves the folder.
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Collection:
    """A collection's own facts; the machinery asks for nothing else.

    Attributes:
        title: for people, such as ``"LiTS"``.
        dataset_name: the part of the dataset's folder name after ``DatasetXXX_``.
        rules: the labels, and what becomes of a mask's values.
        tumour: the value in the dataset that is the tumour; None if the collection has none.
        label_grid: how far the labels' headers are to be believed; see `align_label`.
        reference, licence: for dataset.json.
        private: source names may tell who a patient is, and are kept out of everything that is written or printed.
    """

    title: str
    dataset_name: str
    rules: LabelMap
    tumour: int | None
    label_grid: LabelGrid
    reference: str
    licence: str
    private: bool = False


@dataclass(frozen=True)
class CollectionListing:
    """What a look at the source folder found.

    Attributes:
        cases: in the order of their names.
        problems: what is wrong with the collection as a whole or with cases that never came to be, one sentence each.
        warnings: what a person should know.
    """

    cases: tuple[CaseSource, ...]
    problems: tuple[str | Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def tumour_only(collection: Collection) -> Collection:
    """The collection with the tumour as its only label, value 1; everything else becomes background.

    Raises:
        UserError: it has no tumour label.
    """
    if collection.tumour is None:
        raise UserError(f"{collection.title} has no tumour label, so there is nothing for --tumour-only to keep")
    rules = collection.rules
    kept = {value: int(becomes == collection.tumour) for value, becomes in rules.table().items()}
    # All patterns stay, since the first that fits counts.
    segments = tuple((pattern, int(value == collection.tumour)) for pattern, value in rules.segments)
    names = {1: rules.names[collection.tumour]}
    return replace(collection, tumour=1, rules=LabelMap(names, values=kept, stray=rules.stray, segments=segments))


def dataset_labels(rules: LabelMap, *, regions: bool) -> tuple[dict[str, int | list[int]], tuple[int, ...] | None]:
    """The entries `labels` and `regions_class_order` of dataset.json.

    With regions, what a wider region says is overwritten by a narrower one, so wide ones come first.

    Raises:
        UserError: regions are asked for where the labels form none.
    """
    if not regions:
        return {"background": 0, **{name: value for value, name in rules.names.items()}}, None
    if not rules.region_of:
        raise UserError("these labels form no regions; leave --regions away")
    ordered = sorted(rules.region_of.items(), key=lambda item: -len(item[1]))
    labels: dict[str, int | list[int]] = {"background": 0}
    labels.update({name: list(values) if len(values) > 1 else values[0] for name, values in ordered})
    own_values = []
    for _, values in ordered:
        narrower = {value for _, others in ordered if set(others) < set(values) for value in others}
        own_values.append(next(value for value in values if value not in narrower))
    return labels, tuple(own_values)


@dataclass(frozen=True)
class Numbered:
    """Files by the number in their names.

    Attributes:
        files: the file of every number that a single file has.
        several: the numbers that several files have. Which of them is meant is not ours to guess.
        problems: a sentence for each of these.
    """

    files: Mapping[int, Path]
    several: frozenset[int]
    problems: tuple[str, ...]


def matched_by_number(files: Iterable[Path], pattern: str, *, what: str, root: Path) -> Numbered:
    """Files whose name fits `pattern`, by the number in its first group.

    Args:
        pattern: regular expression for the whole name; case does not matter.
        root: for the messages.
    """
    found: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        if match := re.fullmatch(pattern, file.name, re.IGNORECASE):
            found[int(match[1])].append(file)
    several = {number: paths for number, paths in sorted(found.items()) if len(paths) > 1}
    return Numbered(
        {number: paths[0] for number, paths in sorted(found.items()) if number not in several},
        frozenset(several),
        tuple(
            f"{what} {number} is there several times: {' and '.join(inside(path, root) for path in paths)}; "
            "keep one and move the rest away"
            for number, paths in several.items()
        ),
    )


def missing_partners(images: Numbered, labels: Numbered, root: Path) -> list[str]:
    """A sentence for every training image without a label, and the other way round."""
    return [
        f"{inside(here.files[n], root)} has no {partner}; download it, or move this file away"
        for here, there, partner in ((images, labels, "segmentation"), (labels, images, "image"))
        for n in sorted(here.files.keys() - there.files.keys() - there.several)
    ]


def check_case_name(name: str) -> str:
    """`name`, if it may name files.

    Raises:
        UserError: it is empty, leaves the folder, or holds characters that some system or nnU-Net stumbles over.
    """
    if not CASE_NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{name!r} cannot name a case: use letters, digits, '_', '-', '+' and '.', beginning with a letter or digit"
        )
    return name


def check_names(cases: Sequence[CaseSource]) -> None:
    """Refuse names of cases that cannot name files, or not all at once.

    Raises:
        UserError: as `check_case_name`; or two are alike where capitals are not told from small letters.
    """
    names = [check_case_name(case.name) for case in cases]
    folded = [name.casefold() for name in names]
    if twice := sorted(name for name in names if folded.count(name.casefold()) > 1):
        raise UserError(f"several cases would be called {twice[0]!r}; give every case a name of its own")


def case_name(row: Row) -> str:
    """The column `case`. Raises UserError where it cannot name a case."""
    try:
        return check_case_name(row["case"])
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None


def read_spacings(path: Path) -> dict[str, Triple]:
    """Voxel sizes by case from a CSV file ``case,x,y,z``: millimetres along the axes of the image's array.

    Raises:
        UserError: as `read_table`, and for a case that is there twice or numbers that are not positive.
    """
    spacings: dict[str, Triple] = {}
    for row in read_table(path, required=("case", "x", "y", "z")):
        case = case_name(row)
        if case in spacings:
            raise UserError(f"{row.where}: {case} is there twice; keep one line for every case")
        spacings[case] = (row.positive_number("x"), row.positive_number("y"), row.positive_number("z"))
    return spacings


def by_case(values: Mapping[str, Value], cases: Sequence[CaseSource], *, where: str) -> dict[str, Value]:
    """`values` by the cases' own names, whatever a table calls them: LiTS_028, volume-28 (the image's file) or 28.

    Raises:
        UserError: a name is none of these, or two of them are one case's.
    """
    called: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        called[case.image.name[: len(case.image.name) - len(ending_of(case.image))]].add(case.name)
        if not case.test and (number := re.search(r"\d+$", case.name)):
            called[str(int(number[0]))].add(case.name)
    called.update({case.name: {case.name} for case in cases})
    found: dict[str, Value] = {}
    unknown = []
    for name, value in values.items():
        names = called.get(str(int(name)) if name.isdecimal() else name, set())
        if len(names) != 1:
            unknown.append(name)
            continue
        (case_of_name,) = names
        if case_of_name in found:
            raise UserError(f"{where}: {case_of_name} is there twice, as {name} too; keep one line for every case")
        found[case_of_name] = value
    if unknown:
        first = min(unknown)
        several = (
            f"{len(unknown)} cases that are not there, such as" if len(unknown) > 1 else "a case that is not there:"
        )
        nearest = closest_match(first, [case.name for case in cases])
        meant = f"did you mean {nearest}?" if nearest else f"cases are called like {cases[0].name}"
        raise UserError(f"{where} names {several} {shortened(first)} ({meant}); correct the names or take them out")
    return found
