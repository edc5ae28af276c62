"""Writes the demo's CT-like phantoms (liver and tumour) as a raw nnU-Net dataset into nnUNet_raw."""

import argparse
import os
import sys
from pathlib import Path

from nnunet_godc.demo.dataset import DATASET_ID, HELD_OUT, TRAINING, write_phantom_dataset


def convert_phantom(
    nnunet_raw: Path, *, dataset_id: int = DATASET_ID, training: int = TRAINING, test: int = HELD_OUT
) -> Path:
    """Draw the collection and write it to ``nnunet_raw/DatasetXXX_Phantom``; returns that folder.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the identifier is not between 1 and 999, or the numbers of cases make no dataset.
    """
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"nnU-Net's dataset identifiers run from 1 to 999, not {dataset_id}")
    folder = nnunet_raw / f"Dataset{dataset_id:03d}_Phantom"
    write_phantom_dataset(folder, training=training, test=test)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", type=int, default=DATASET_ID, help="nnU-Net dataset ID, default: %(default)s")
    parser.add_argument("--training", type=int, default=TRAINING, help="training cases, default: %(default)s")
    parser.add_argument("--test", type=int, default=HELD_OUT, help="held-out cases, default: %(default)s")
    arguments = parser.parse_args()
    if "nnUNet_raw" not in os.environ:
        sys.exit(
            "nnUNet_raw is not set; point it to the folder for raw datasets, e.g. export nnUNet_raw=$HOME/nnUNet_raw"
        )
    try:
        folder = convert_phantom(
            Path(os.environ["nnUNet_raw"]), dataset_id=arguments.d, training=arguments.training, test=arguments.test
        )
    except (FileExistsError, ValueError) as error:
        sys.exit(str(error))
    print(f"Written: {folder}")


if __name__ == "__main__":
    main()
