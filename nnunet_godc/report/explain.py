"""Looks into a trained model: what GODC does to its gradients, and what LFAM's offsets do to its predictions."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from numpy.typing import NDArray
from torch import Tensor

from nnunet_godc.alignment import SkipAlignment
from nnunet_godc.alignment.offsets import OffsetLengths, seen_offsets, weights_without_offsets
from nnunet_godc.errors import UserError
from nnunet_godc.losses import GODCConfig, GODCLoss, soft_dice, soft_statistics, soft_union
from nnunet_godc.losses.gradients import measured_gradients, theoretical_gradients
from nnunet_godc.report.inside import Explanation
from nnunet_godc.report.offsets_picture import draw_offsets
from nnunet_godc.training.checkpoint import BEST, FINAL, LATEST, read_checkpoint
from nnunet_godc.training.godc import STATE_KEY, GODCMixin
from nnunet_godc.training.seeding import random_numbers

FEWEST_PATCHES = 32  # over all batches
FOREGROUND = 0.33  # of a batch's patches that nnU-Net's trainer centres on a label
PICTURES = 6
SEED = 0


@dataclass(frozen=True)
class ExplainedCase:
    """A case as nnU-Net's preprocessing leaves it.

    Attributes:
        images, label: its files; None without a label.
        data: (channels, z, y, x), normalised and resampled.
        segmentation: (1, z, y, x), the label's values; all 0 without one.
        properties: nnU-Net's, of the raw image.
    """

    name: str
    images: Sequence[str]
    label: str | None
    data: NDArray[np.float32]
    segmentation: NDArray[np.int16]
    properties: dict[str, Any]


def explain(
    model: Path,
    cases: Sequence[str],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """Looks into a model, on the CPU.

    Args:
        model: folder of a model, whose first fold is taken, or a checkpoint in it.
        cases: names of cases in nnUNet_raw, or paths of the first channels of their images.
        progress: called with the number of cases that are done, and of all.

    Raises:
        UserError: the checkpoint is not safe to load or belongs to nothing that is installed, a case is not found, or
            there is nothing to explain.
    """
    path = _checkpoint_of(model)
    checkpoint = read_checkpoint(path)
    predictor, trainer = _load(path, checkpoint)
    dataset = str(checkpoint["init_args"]["plans"].get("dataset_name", ""))
    files = [_files(case, dataset, predictor.dataset_json) for case in cases]
    has_alignment = any(isinstance(module, SkipAlignment) for module in predictor.network.modules())
    labelled = any(label for _, _, label in files)
    if not (has_alignment or labelled):
        raise UserError(
            "there is nothing to explain: the network has no LFAM, and none of the cases has a label to compute the "
            "gradients of; give cases of imagesTr"
        )
    progress(0, len(files))
    found: list[ExplainedCase] = []
    lengths: dict[int, OffsetLengths] = {}
    at_zero: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    shown: list[dict[str, Any]] = []
    for done, (name, images, label) in enumerate(files, 1):
        case = _preprocess(name, images, label, predictor)
        found.append(case)
        if has_alignment:
            with seen_offsets(predictor.network, _adds_to(lengths, predictor)):
                logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(case.data))
            at_zero += _without_offsets(case, logits, predictor)
            if len(pictures) < PICTURES:
                prediction = predictor.label_manager.convert_logits_to_segmentation(logits)
                file = f"offsets-{len(pictures)}.png"
                pictures[file], about = draw_offsets(case, np.asarray(prediction), predictor)
                shown.append({"case": name, "file": file, **about})
        progress(done, len(files))
    with_label = [case for case in found if case.label]
    objects, batches = _objects(with_label, predictor, checkpoint, trainer) if with_label else (pd.DataFrame(), 0)
    arguments = checkpoint["init_args"]
    facts = {
        "dataset": dataset,
        "trainer": checkpoint["trainer_name"],
        "plans": str(arguments["plans"].get("plans_name", "")),
        "configuration": arguments["configuration"],
        "fold": str(arguments.get("fold")),
        "epochs": checkpoint.get("current_epoch"),
        "checkpoint": path.name,
        "cases": [case.name for case in found],
        "without_label": [case.name for case in found if not case.label],
        "batch_size": predictor.configuration_manager.batch_size,
        "batches": batches,
        "batch_dice": bool(predictor.configuration_manager.batch_dice),
        "godc": asdict(trainer.godc) if issubclass(trainer, GODCMixin) else None,
        "lfam": has_alignment,
        "pictures": shown,
    }
    rows = [{"level": level, **own.row()} for level, own in sorted(lengths.items())]
    return Explanation(facts, objects, pd.DataFrame(rows), pd.DataFrame(at_zero), pictures)


def _checkpoint_of(model: Path) -> Path:
    if not model.is_dir():
        return model
    for name in (FINAL, BEST, LATEST):
        if found := sorted(model.glob(f"fold_*/{name}")) or sorted(model.glob(name)):
            return found[0]
    raise UserError(f"{model} has no checkpoint; give nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION")


def _load(path: Path, checkpoint: Mapping[str, Any]) -> tuple[nnUNetPredictor, type[Any]]:
    """The model as nnU-Net predicts with it, and its trainer's class; of a checkpoint that was read safely."""
    model, fold = path.absolute().parent.parent, path.absolute().parent.name
    missing = [name for name in ("plans.json", "dataset.json") if not (model / name).is_file()]
    if missing or not fold.startswith("fold_"):
        raise UserError(
            f"{path} does not lie in the folder of a model ({', '.join(missing) or 'fold_X'} is missing); nnU-Net "
            "needs MODEL/plans.json, MODEL/dataset.json and MODEL/fold_X/checkpoint_final.pth"
        )
    name = checkpoint["trainer_name"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        raise UserError(f"nnU-Net finds no trainer called {name}, which {path} needs; install what it is in") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it looked for the trainer
            predictor = nnUNetPredictor(
                use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
            )
            predictor.initialize_from_trained_model_folder(str(model), (fold.removeprefix("fold_"),), path.name)
    except RuntimeError as error:
        difference = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not fit the network of {name} ({difference}); use the plans it belongs to"
        ) from error
    if predictor.configuration_manager.previous_stage_name is not None:
        raise UserError(f"{path} is the second stage of a cascade, which is not supported here; give another model")
    predictor.network.eval()
    return predictor, trainer


def _files(case: str, dataset: str, dataset_json: Mapping[str, Any]) -> tuple[str, list[str], str | None]:
    """Name, images and label of a case, which is given by its name or the path of its first channel."""
    ending = dataset_json["file_ending"]
    first = Path(case)
    if not (first.name.endswith(f"_0000{ending}") and first.exists()):
        root = os.environ.get("nnUNet_raw")
        places = (
            [Path(root, dataset, part, f"{case}_0000{ending}") for part in ("imagesTr", "imagesTs")] if root else []
        )
        first = next((place for place in places if place.exists()), first)
    if not first.name.endswith(f"_0000{ending}"):
        where = f"{dataset} in nnUNet_raw ({root})" if root else "nnUNet_raw, which is not set"
        raise UserError(
            f"case {case} is not in {where}; give another, or the path of its first channel, *_0000{ending}"
        )
    name = first.name.removesuffix(f"_0000{ending}")
    images = [first.with_name(f"{name}_{channel:04d}{ending}") for channel in range(len(dataset_json["channel_names"]))]
    if missing := [image for image in images if not image.exists()]:
        raise UserError(f"case {name}: {missing[0]} is missing")
    label = first.parent.with_name(first.parent.name.replace("images", "labels")) / f"{name}{ending}"
    return name, list(map(str, images)), str(label) if label.exists() and label.parent != first.parent else None


def _preprocess(name: str, images: list[str], label: str | None, predictor: nnUNetPredictor) -> ExplainedCase:
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    try:
        data, segmentation, properties = preprocessor.run_case(
            images, label, predictor.plans_manager, configuration, predictor.dataset_json
        )
    except Exception as error:  # whatever the libraries behind nnU-Net's readers raise for a damaged file
        raise UserError(f"case {name}: nnU-Net cannot preprocess it ({type(error).__name__}: {error})") from error
    # outside of the image nnU-Net has -1, and trains with 0
    return ExplainedCase(name, images, label, data, np.maximum(segmentation, 0).astype(np.int16), properties)


# Offsets


def _adds_to(lengths: dict[int, OffsetLengths], predictor: nnUNetPredictor) -> Callable[[int, Tensor], None]:
    configuration = predictor.configuration_manager

    def see(level: int, offsets: Tensor) -> None:
        spacing = [
            size * whole / own
            for size, whole, own in zip(configuration.spacing, configuration.patch_size, offsets.shape[3:], strict=True)
        ]
        lengths.setdefault(level, OffsetLengths()).add(offsets, spacing)

    return see


def _without_offsets(case: ExplainedCase, logits: Tensor, predictor: nnUNetPredictor) -> Iterator[dict[str, Any]]:
    """For each label, Dice with and without offsets, and between the two, on the voxels of the raw image."""
    before = predictor.list_of_parameters
    predictor.list_of_parameters = [weights_without_offsets(predictor.network)]
    at_zero = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(case.data))
    predictor.list_of_parameters = before
    predictor.network.load_state_dict(before[0])
    own, other = (
        convert_predicted_logits_to_segmentation_with_correct_shape(
            each, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, case.properties
        )
        for each in (logits, at_zero)
    )
    reference = ignored = None
    if case.label:
        reference = predictor.plans_manager.image_reader_writer_class().read_seg(case.label)[0][0]
        ignored = reference == predictor.label_manager.ignore_label

    def dice(first: NDArray[Any], second: NDArray[Any], value: Any, ignored: NDArray[Any] | None) -> float:
        masks = (region_or_label_to_mask(each, value) for each in (first, second))
        right, too_much, missed, _ = compute_tp_fp_fn_tn(*masks, ignored)
        counted = 2 * right + too_much + missed
        return float(2 * right / counted) if counted else np.nan

    for name, value in _heads(predictor, background=False):
        row = {"case": case.name, "label": name, "agreement": dice(own, other, value, None)}
        for column, prediction in (("dice", own), ("dice_at_zero", other)):
            row[column] = np.nan if reference is None else dice(reference, prediction, value, ignored)
        yield row


def _heads(predictor: nnUNetPredictor, *, background: bool) -> list[tuple[str, Any]]:
    """Names and values of the network's outputs, in their order."""
    manager = predictor.label_manager
    named = {tuple(np.atleast_1d(value)): name for name, value in predictor.dataset_json["labels"].items()}
    values = manager.foreground_regions if manager.has_regions else manager.all_labels
    heads = [(str(named[tuple(np.atleast_1d(value))]), value) for value in values]
    return heads if manager.has_regions or background else heads[1:]


# Gradients


@dataclass(frozen=True)
class _Loaded:
    """Cases as nnU-Net's loader asks for them."""

    cases: Mapping[str, ExplainedCase]

    @property
    def identifiers(self) -> list[str]:
        return list(self.cases)

    def load_case(self, name: str) -> tuple[Any, Any, None, dict[str, Any]]:
        case = self.cases[name]
        return case.data, case.segmentation, None, case.properties


def _losses(
    predictor: nnUNetPredictor, checkpoint: Mapping[str, Any], trainer: type[Any]
) -> tuple[dict[str, Any], bool]:
    """The Dice terms that are compared, by name, and whether they count the background."""
    configs = {"Dice": GODCConfig(exponent=0), "GODC": GODCConfig(), "GODC squared": GODCConfig(exponent=2)}
    own = trainer.godc if issubclass(trainer, GODCMixin) else None
    if own is not None and own not in configs.values():
        configs["GODC as trained"] = own
    background = predictor.label_manager.has_regions or bool(own and own.include_background)
    losses: dict[str, Any] = {
        name: GODCLoss(
            do_bg=background, ddp=False, config=config, classes=predictor.label_manager.num_segmentation_heads
        ).eval()
        for name, config in configs.items()
    }
    if own is not None and own.normalization == "running" and STATE_KEY in checkpoint:
        losses["GODC as trained"].load_state_dict(checkpoint[STATE_KEY])
    losses["batch Dice"] = MemoryEfficientSoftDiceLoss(batch_dice=True, do_bg=background, smooth=1e-5, ddp=False)
    return losses, background


def _objects(
    cases: Sequence[ExplainedCase], predictor: nnUNetPredictor, checkpoint: Mapping[str, Any], trainer: type[Any]
) -> tuple[pd.DataFrame, int]:
    """A table of all objects of batches drawn as in training, without augmentation, and the number of batches."""
    manager, size = predictor.label_manager, predictor.configuration_manager.batch_size
    patch = predictor.configuration_manager.patch_size
    batches = max(2, -(-max(FEWEST_PATCHES, 2 * len(cases)) // size))
    loaded: Any = _Loaded({case.name: case for case in cases})
    losses, background = _losses(predictor, checkpoint, trainer)
    heads = _heads(predictor, background=background)
    values = [value for _, value in _heads(predictor, background=True)]
    rows: list[dict[str, Any]] = []
    with random_numbers(SEED):
        loader = nnUNetDataLoader(loaded, size, patch, patch, manager, FOREGROUND)
        drawn = [next(loader) for _ in range(batches)]
    for number, batch in enumerate(drawn):
        labels = batch["target"]
        with torch.no_grad():
            logits = [predictor.network(sample[None])[0] for sample in batch["data"]]
        probabilities = torch.stack(list(map(manager.apply_inference_nonlin, logits)))  # (B, C, ...)
        target = torch.cat([torch.isin(labels, torch.tensor(value)) for value in values], dim=1)
        counted = labels != (manager.ignore_label if manager.has_ignore_label else -1)
        statistics = soft_statistics(probabilities, target, counted, include_background=background)
        union = soft_union(statistics).double()  # (B, C)
        iou = statistics.intersection / union
        shared = {
            "reference_voxels": statistics.reference,
            "union_voxels": union,
            "iou": iou,
            "dice": soft_dice(statistics, 1e-5),
        }
        for name, loss in losses.items():
            weight = torch.full_like(union, torch.nan)
            if isinstance(loss, GODCLoss):
                weight = loss.weight(statistics, probabilities[0, 0].numel())[0]
                # what flows through a weight that is no constant, the theory does not have
                theory = theoretical_gradients(union, iou, weight if loss.config.detach else torch.nan)
            else:
                pooled = union.sum(0).expand_as(union)
                theory = theoretical_gradients(pooled, statistics.intersection.sum(0) / pooled, len(union))

            def term(p: Tensor, y: Tensor, loss: Any = loss, counted: Tensor = counted) -> Tensor:
                value: Tensor = loss(p, y, counted)
                return value

            measured = measured_gradients(term, probabilities, target, counted)
            columns = {
                **shared,
                "weight": weight,
                "gradient_inside": measured.inside[:, -len(heads) :],
                "gradient_outside": measured.outside[:, -len(heads) :],
                "theory_inside": theory.inside,
                "theory_outside": theory.outside,
            }
            for sample, case in enumerate(batch["keys"]):
                for column, (label, _) in enumerate(heads):
                    entries = {key: float(entry[sample, column]) for key, entry in columns.items()}
                    about = {"batch": number, "sample": sample, "case": str(case), "label": label, "loss": name}
                    rows.append({**about, **entries})
    return pd.DataFrame(rows), batches
