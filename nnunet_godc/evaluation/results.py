"""What there is to evaluate: nnU-Net's own results, or folders of predictions beside their references."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case import Label, LabelMeasures, Labels

SUMMARY = "summary.json"
CROSS_VALIDATION = "crossval_results_folds_*"
SPLITS = "splits_final.json"


@dataclass(frozen=True)
class Case:
    """One prediction.

    Attributes:
        name: of the case.
        fold: that it was held out of; None where that cannot be told.
        predictions, references: the folders of its files, which may be missing.
        file: what both files are called.
        counted: every label as nnU-Net's summary.json has counted its voxels; None without.
    """

    name: str
    fold: int | None
    predictions: Path
    references: Path
    file: str
    counted: Mapping[str, LabelMeasures] | None = None

    @property
    def prediction(self) -> Path:
        return self.predictions / self.file

    @property
    def reference(self) -> Path:
        return self.references / self.file


@dataclass(frozen=True)
class Results:
    """What one trainer predicted with one plan and one configuration.

    Attributes:
        folder: where it was found.
        dataset, configuration, plans, trainer: as nnU-Net names them.
        labels: of the dataset.
        reader: nnU-Net's class that reads its files.
        cases: fold after fold, in the order of their names.
        problems: what is missing, one sentence each.
        notes: what was left out on purpose, one sentence each.
    """

    folder: Path
    dataset: str
    configuration: str
    plans: str
    trainer: str
    labels: Labels
    reader: type[Any]
    cases: tuple[Case, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.dataset} {self.trainer}__{self.plans}__{self.configuration}"


@dataclass(frozen=True)
class _Model:
    """What dataset.json and plans.json tell."""

    dataset: str
    plans: str
    labels: Labels
    reader: type[Any]
    file_ending: str


@dataclass
class _Found:
    cases: list[Case] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def trainer_results(folder: Path, references: Path | None = None) -> Results:
    """Results of a cross-validation, ``nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION``.

    The validation folders of the folds are read; where there are none, ``crossval_results_folds_...``, whose cases do
    not tell their folds. Fold ``all`` is left out: it validates on the cases that it was trained on.

    Args:
        references: folder of the references; by default the dataset's in nnUNet_raw or nnUNet_preprocessed, or that
            which summary.json names.

    Raises:
        UserError: it is no such folder, or holds no results.
    """
    from nnunetv2.utilities.file_path_utilities import convert_identifier_to_trainer_plans_config

    name = convert_identifier_to_trainer_plans_config(str(folder.absolute()))
    if len(name) != 3:
        raise UserError(
            f"{folder} is not a folder of results; give nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION, "
            "or predictions and references with -pred and -ref"
        )
    model = _read_model(folder / "dataset.json", folder / "plans.json")
    found = _Found()
    folds = _folds(folder, found)
    if folds:
        _add_folds(found, folder, folds, model, references)
    elif merged := sorted(folder.glob(CROSS_VALIDATION)):
        if len(merged) > 1:
            raise UserError(
                f"{folder} holds several merged cross-validations ({', '.join(path.name for path in merged)}) and no "
                "fold's validation folder; give one of them with -pred, and the references with -ref"
            )
        _add(found, merged[0], None, model, references)
    if not found.cases:
        raise UserError(
            f"{folder} has no validation results; run nnUNetv2_train ... --val for each of its folds"
            + "".join(f"\n  {note}" for note in found.notes)
        )
    trainer, plans, configuration = name
    return _results(folder, model, configuration, plans, trainer, found)


def _folds(folder: Path, found: _Found) -> dict[int, Path]:
    """The validation folders by the number of their fold; notes for what else is called like a fold."""
    folds = {}
    for path in sorted(folder.glob("fold_*")):
        number = path.name.removeprefix("fold_")
        if not (path / "validation").is_dir():
            if number.isdigit():
                found.notes.append(f"{folder}: {path.name} has no validation results, its cases are in no number")
        elif number.isdigit():
            folds[int(number)] = path / "validation"
        elif number == "all":
            found.notes.append(f"{folder}: fold_all is left out, it validates on the cases that it was trained on")
        else:
            found.notes.append(f"{folder}: {path.name} is left out, it is called like no fold of nnU-Net")
    return dict(sorted(folds.items()))


def _add_folds(found: _Found, folder: Path, folds: Mapping[int, Path], model: _Model, references: Path | None) -> None:
    validating = dict(enumerate(_validating_cases(model.dataset)))
    for number, predictions in folds.items():
        _add(found, predictions, number, model, references, validating.get(number, ()), only=number in validating)
    if absent := [number for number in validating if number not in folds and not (folder / f"fold_{number}").is_dir()]:
        missing = ", ".join(map(str, absent))
        found.notes.append(f"{folder}: no validation results of fold {missing}, whose cases are in no number")
    fold_of: dict[str, int | None] = {}
    for case in found.cases:
        if case.name in fold_of:
            found.problems.append(
                f"{folder}: folds {fold_of[case.name]} and {case.fold} both hold {case.name}, so that one of them was "
                "trained on it; delete what the splits did not leave to it"
            )
        fold_of.setdefault(case.name, case.fold)


def predicted_results(
    predictions: Path,
    references: Path,
    dataset_json: Path | None = None,
    plans: Path | None = None,
    *,
    only_predicted: bool = False,
) -> Results:
    """A folder of predictions. Where its path does not tell the trainer, its own name stands for the trainer's.

    Args:
        predictions: as nnUNetv2_predict writes it.
        references: the cases' files have the same names there.
        dataset_json, plans: by default those that nnUNetv2_predict has put beside the predictions.
        only_predicted: references without a prediction are not a problem, as with nnU-Net's ``--chill``.

    Raises:
        UserError: a folder, dataset.json or plans.json is missing or cannot be read; there is no case.
    """
    for path in (predictions, references):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folders of predictions (-pred) and references (-ref)")
    model = _read_model(dataset_json or predictions / "dataset.json", plans or predictions / "plans.json")
    found = _Found()
    expected = () if only_predicted else _names(references, model.file_ending)
    _add(found, predictions, None, model, references, expected)
    if not found.cases:
        raise UserError(f"{predictions} and {references} hold no case of the file ending {model.file_ending}")
    trainer, plans_name, configuration = _names_in_path(predictions) or (predictions.absolute().name, model.plans, "")
    return _results(predictions, model, configuration, plans_name, trainer, found)


def _results(folder: Path, model: _Model, configuration: str, plans: str, trainer: str, found: _Found) -> Results:
    if model.reader.__name__ == "NaturalImage2DIO":
        found.notes.append(f"{folder}: {model.file_ending} holds no spacing, so mm and ml stand for pixels of 1 mm")
    if model.reader.__name__ == "Tiff3DIO" and any(_without_spacing(case) for case in found.cases):
        found.notes.append(
            f"{folder}: a TIFF without its spacing in a .json beside it: nnU-Net takes 1 mm, and so do mm and ml here"
        )
    return Results(
        folder=folder,
        dataset=model.dataset,
        configuration=configuration,
        plans=plans,
        trainer=trainer,
        labels=model.labels,
        reader=model.reader,
        cases=tuple(found.cases),
        problems=tuple(found.problems),
        notes=tuple(found.notes),
    )


def _without_spacing(case: Case) -> bool:
    return case.reference.exists() and not case.reference.with_suffix(".json").exists()


def _add(
    found: _Found,
    folder: Path,
    fold: int | None,
    model: _Model,
    references: Path | None,
    expected: Iterable[str] = (),
    *,
    only: bool = False,
) -> None:
    """Adds the cases of one folder of predictions, those that are `expected` whether they are there or not.

    Others are left out and told where `only` those are to be there.
    """
    counted, counted_against = _read_summary(folder / SUMMARY, model, found)
    if references is None:
        references = _references(model, counted_against)
    elif counted_against is None or counted_against.resolve() != references.resolve():
        counted = {}  # against other references than those that are asked for
    since = _changed_at(folder / SUMMARY)

    def changed(file: str) -> bool:
        """Whether the prediction or its reference was written after nnU-Net had counted it."""
        return max(_changed_at(folder / file), _changed_at(references / file)) > since

    counted = {name: counts for name, counts in counted.items() if not changed(name + model.file_ending)}
    names = {*_names(folder, model.file_ending), *counted}
    if only and (others := sorted(names.difference(expected))):
        found.problems.append(
            f"{folder} holds {len(others)} cases that {SPLITS} does not leave to this fold, such as {others[0]}; they "
            "are left out, as the fold may have been trained on them"
        )
        names.difference_update(others)
    for name in sorted({*names, *expected}):
        found.cases.append(Case(name, fold, folder, references, name + model.file_ending, counted.get(name)))


def _read_summary(path: Path, model: _Model, found: _Found) -> tuple[dict[str, dict[str, LabelMeasures]], Path | None]:
    """What nnU-Net has counted, by case and label, and the folder of the references; nothing if there is no summary."""
    from nnunetv2.evaluation.evaluate_predictions import load_summary_json

    counted: dict[str, dict[str, LabelMeasures]] = {}
    references = None
    try:
        for case in load_summary_json(str(path))["metric_per_case"]:
            name = os.path.basename(case["prediction_file"]).removesuffix(model.file_ending)  # noqa: PTH119 much faster
            metrics = case["metrics"]
            counted[name] = {
                label: LabelMeasures(int(counts["TP"]), int(counts["FP"]), int(counts["FN"]))
                for label, value in model.labels.values.items()
                for counts in (metrics[value],)
            }
            references = references or Path(case["reference_file"]).parent
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(
            f"{path} does not hold the counts of the labels in dataset.json ({type(error).__name__}); delete it, and "
            "the images are read"
        )
        return {}, None
    return counted, references


def _references(model: _Model, named_in_summary: Path | None) -> Path:
    """The folder of the references, in the order in which nnU-Net looks for it."""
    candidates = [
        Path(root) / model.dataset / part
        for variable, part in (("nnUNet_raw", "labelsTr"), ("nnUNet_preprocessed", "gt_segmentations"))
        if (root := os.environ.get(variable))
    ]
    if named_in_summary is not None:
        candidates.append(named_in_summary)
    return next((path for path in candidates if path.is_dir()), candidates[0] if candidates else Path("labelsTr"))


def _validating_cases(dataset: str) -> Sequence[Sequence[str]]:
    """The cases that each fold validates on, if nnUNet_preprocessed tells."""
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        return ()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        splits = json.loads((Path(root) / dataset / SPLITS).read_text(encoding="utf-8"))
        return [list(fold["val"]) for fold in splits]
    return ()


def _read_model(dataset_json: Path, plans: Path) -> _Model:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    description, plan = _read_json(dataset_json), _read_json(plans)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of a missing entry that has a default
            manager = PlansManager(plan)
            label_manager = manager.get_label_manager(description)
        regions = label_manager.has_regions
        foreground = label_manager.foreground_regions if regions else label_manager.foreground_labels
        values = {name: _as_label(value, regions) for name, value in description["labels"].items() if name != "ignore"}
        return _Model(
            dataset=manager.dataset_name,
            plans=manager.plans_name,
            labels=Labels(
                {name: value for name, value in values.items() if value in foreground}, label_manager.ignore_label
            ),
            reader=manager.image_reader_writer_class,
            file_ending=description["file_ending"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{dataset_json} and {plans} are not a pair that nnU-Net can use ({type(error).__name__}: {reason}); give "
            "those that the model was trained with"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; nnU-Net puts dataset.json and plans.json beside its results and predictions, beside "
            "ensembles dataset.json alone; put it there, or give it with -djfile or -pfile"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"{path} cannot be read, or is no JSON; give the file that the model was trained with"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} does not hold what nnU-Net writes there; give the file that the model was trained with"
        )
    return content


def _as_label(value: Any, regions: bool) -> Label:
    """As nnU-Net's label manager gives it: with regions every list is one, without a list holds a single label."""
    if isinstance(value, list):
        return tuple(int(member) for member in value) if regions else int(value[0])
    return int(value)


def _names_in_path(folder: Path) -> tuple[str, str, str] | None:
    """Trainer, plans and configuration of a folder within nnU-Net's results."""
    from nnunetv2.utilities.file_path_utilities import parse_dataset_trainer_plans_configuration_from_path

    with contextlib.suppress(AssertionError, IndexError):  # how nnU-Net says that they are not in there
        if found := parse_dataset_trainer_plans_configuration_from_path(str(folder.absolute())):
            _, trainer, plans, configuration = found
            return trainer, plans, configuration
    return None


def _names(folder: Path, file_ending: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name.removesuffix(file_ending) for entry in entries if entry.name.endswith(file_ending)]


def _changed_at(path: Path) -> int:
    """Nanoseconds since 1970; 0 where there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
