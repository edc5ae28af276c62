"""nnU-Net's preprocessing where it is still to be done, and the folds, once, before trainings look for them.

    python -m nnunet_godc.study.preprocess DATASET PLANS CONFIGURATION -np WORKERS

nnU-Net removes what lies in the folder that it preprocesses into. Several plans share one folder of data (those of the
residual encoder U-Nets and nnUNetPlans), so running it again for the next plans would take the data away from trainings
that read it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_godc.commands import find_command
from nnunet_godc.study.folder import write_json


def preprocess(dataset: str, plans: str, configuration: str, workers: int) -> None:
    """Replaces this process by `nnUNetv2_preprocess`, or returns where every case is preprocessed.

    Args:
        dataset: name.
        plans: identifier.
        configuration: one with data of its own.
        workers: nnU-Net's `-np`.
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
        sys.exit(f"{plans} of {dataset} have no configuration {configuration}: nnU-Net plans it where it makes sense.")
    data = folder / planned.get_configuration(configuration).data_identifier
    if cases and all((data / f"{case}.pkl").exists() and (references / f"{case}{ending}").exists() for case in cases):
        print(f"{data} holds all {len(cases)} cases already.")
        return
    command = find_command("nnUNetv2_preprocess")
    sys.stdout.flush()
    os.execv(
        command,
        [
            *(command, "-d", str(int(dataset[7:10])), "-plans_name", plans, "-c", configuration),
            *("-np", str(workers), "--no_pbar"),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("plans")
    parser.add_argument("configuration")
    parser.add_argument("-np", type=int, required=True)
    arguments = parser.parse_args()
    preprocess(arguments.dataset, arguments.plans, arguments.configuration, arguments.np)


if __name__ == "__main__":
    main()
