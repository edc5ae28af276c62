"""What a collection is to the conversion: where its cases lie, and what its labels mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_godc.conversion.alignment import LabelGrid
from nnunet_godc.conversion.case import CaseSource
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.problems import Problem
from nnunet_godc.errors import UserError

# A case's name becomes file names: no separator, no leading dot, nothing that leaves the folder.
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")


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
    return replace(
        collection,
        tumour=1,
        rules=LabelMap(names={1: rules.names[collection.tumour]}, values=kept, stray=rules.stray, segments=segments),
    )


def dataset_labels(rules: LabelMap, *, regions: bool) -> tuple[dict[str, int | list[int]], list[int] | None]:
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
    own_value = []
    for _, values in ordered:
        narrower = {value for _, others in ordered if set(others) < set(values) for value in others}
        own_value.append(next(value for value in values if value not in narrower))
    return labels, own_value


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
    found: dict[int, list[Path]] = {}
    for file in files:
        if match := re.fullmatch(pattern, file.name, re.IGNORECASE):
            found.setdefault(int(match[1]), []).append(file)
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
    alone = [
        f"{inside(images.files[n], root)} has no segmentation"
        for n in sorted(images.files.keys() - labels.files.keys() - labels.several)
    ]
    alone += [
        f"{inside(labels.files[n], root)} has no image"
        for n in sorted(labels.files.keys() - images.files.keys() - images.several)
    ]
    return [f"{sentence}; download it, or move this file away" for sentence in alone]


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


def inside(path: Path, root: Path) -> str:
    """A path as it is told to its owner: below `root` where it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def names_of(cases: Sequence[CaseSource]) -> list[str]:
    """The cases' names, which are all different.

    Raises:
        UserError: two are alike on a file system that does not tell capitals from small letters.
    """
    names = [check_case_name(case.name) for case in cases]
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice:
        raise UserError(f"several cases would be called {twice[0]!r}; give every case a name of its own")
    return names
