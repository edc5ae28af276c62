"""What a study does to plans and data beside nnU-Net's own commands.

python -m nnunet_godc.study.steps vary PLANS.json NAME '{"patch_size": [24, 40, 24], "features": 8, "stages": 3}'
python -m nnunet_godc.study.steps preprocess DATASET PLANS CONFIGURATION -np WORKERS
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from nnunet_godc.commands import find_command
from nnunet_godc.errors import UserError
from nnunet_godc.plans import shrink
from nnunet_godc.study.folder import write_json


def vary(source: Path, name: str, sizes: dict[str, Any]) -> Path:
    """Writes plans that are a small variation of others as ``<name>.json`` beside them, and returns the path.

    Args:
        source: plans that nnU-Net has made.
        name: identifier of the new ones.
        sizes: keywords of `nnunet_godc.plans.shrink`.

    Raises:
        UserError: there are other plans of that name already, or these cannot be varied so.
    """
    target = source.with_name(f"{name}.json")
    try:
        varied = shrink(json.loads(source.read_text()), name=name, **sizes)
    except FileNotFoundError:
        raise UserError(f"there are no plans {source} to vary; plan the dataset first.") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be made from {source}: {error}") from error
    except KeyError as error:
        raise UserError(
            f"{source} plan a network without {error}: only plans of a plain U-Net can be varied, such as nnUNetPlans."
        ) from error
    if target.exists() and json.loads(target.read_text()) != varied:
        raise UserError(f"{target} exists and says something else; give the variation another name in the study file.")
    write_json(target, varied)
    return target


def preprocess(dataset: str, plans: str, configuration: str, workers: int) -> None:
    """Replaces this process by `nnUNetv2_preprocess`, or returns where every case is preprocessed.

    Several plans share one folder of data (those of the residual encoder U-Nets and nnUNetPlans), and nnU-Net removes
    what lies in the folder that it preprocesses into: for the next plans, it would take the data away from trainings
    that read it. The folds are written, too, before trainings look for them.

    Args:
        dataset: name.
        plans: identifier.
        configuration: one with data of its own.
        workers: nnU-Net's `-np`.

    Raises:
        UserError: the plans have no such configuration.
    """
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw, folder = Path(str(nnUNet_raw), dataset), Path(str(nnUNet_preprocessed), dataset)
    description = load_json(str(folder / "dataset.json"))
    references, ending = folder / "gt_segmentations", description["file_ending"]
    if raw.is_dir():
        cases = sorted(get_filenames_of_train_images_and_targets(str(raw), description))
    else:  # as on a cluster that has the preprocessed data alone
        cases = sorted(path.name.removesuffix(ending) for path in references.glob(f"*{ending}"))
    splits = folder / "splits_final.json"
    if not splits.exists() and len(cases) >= 5:
        # nnU-Net's own folds. Its trainings write them where they are missing, and two that start at once may read
        # what the other has half written.
        write_json(splits, generate_crossval_split(cases, seed=12345, n_splits=5))

    planned = PlansManager(str(folder / f"{plans}.json"))
    if configuration not in planned.available_configurations:
        sentence = "nnU-Net plans it where it makes sense."
        raise UserError(f"{plans} of {dataset} have no configuration {configuration}: {sentence}")
    data = folder / planned.get_configuration(configuration).data_identifier
    if cases and all((data / f"{case}.pkl").exists() and (references / f"{case}{ending}").exists() for case in cases):
        print(f"{data} holds all {len(cases)} cases already.")
        return
    command = find_command("nnUNetv2_preprocess")
    sys.stdout.flush()
    options = ("-d", str(int(dataset[7:10])), "-plans_name", plans, "-c", configuration)
    os.execv(command, [command, *options, "-np", str(workers), "--no_pbar"])


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["vary", source, name, sizes]:
                print(f"Written: {vary(Path(source), name, json.loads(sizes))}")
            case ["preprocess", dataset, plans, configuration, "-np", workers]:
                preprocess(dataset, plans, configuration, int(workers))
            case _:
                raise SystemExit(__doc__)
    except UserError as error:
        print(f"nnunet-godc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
