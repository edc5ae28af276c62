"""Five volumes of a few thousand voxels, and networks for them whose step costs no more than starting a command."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

DATASET = "Dataset901_Tiny"
PLANS = "nnUNetPlans"
CASES = [f"tiny_{number}" for number in range(4)]
HELD_OUT = "tiny_4"
SPLITS = [{"train": CASES[:2], "val": CASES[2:]}, {"train": CASES[2:], "val": CASES[:2]}]


def write_case(folder: Path, part: str, name: str, seed: int) -> None:
    """A ball of label 1 with label 2 at its heart, in 32 x 32 x 12 voxels of 1 x 1 x 3 mm."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), 3 * np.arange(12), indexing="ij"))
    centre = random.uniform(13, 19, size=3)
    distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0))
    labels = (distance < 11).astype(np.uint8) + (distance < 5)
    image = 100 * labels + random.normal(0, 20, labels.shape)
    affine = np.diag([1, 1, 3, 1])
    for kind, ending, voxels in (("images", "_0000", image.astype(np.int16)), ("labels", "", labels.astype(np.uint8))):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{kind}{part}" / f"{name}{ending}.nii.gz")


def write_dataset(folder: Path) -> None:
    for seed, name in enumerate(CASES):
        write_case(folder, "Tr", name, seed)
    write_case(folder, "Ts", HELD_OUT, len(CASES))
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def narrow(plans_file: Path) -> dict[str, Any]:
    """Leaves nnU-Net's topology and takes its width: a step is to cost no more than starting a command."""
    plans: dict[str, Any] = json.loads(plans_file.read_text())
    for configuration in plans["configurations"].values():
        network = configuration["architecture"]["arch_kwargs"]
        network["features_per_stage"] = [4] * network["n_stages"]
        for repeats in {"n_conv_per_stage", "n_blocks_per_stage"} & network.keys():
            network[repeats] = [1] * network["n_stages"]
        configuration["batch_size"] = 2
    plans_file.write_text(json.dumps(plans))
    return plans


def add_cascade(plans_file: Path, plans: dict[str, Any]) -> None:
    """Volumes as small as these are not planned with a cascade; written as nnU-Net writes it."""
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_lowres"] = full | {
        "data_identifier": f"{PLANS}_3d_lowres",
        "spacing": [full["spacing"][0], *(2 * step for step in full["spacing"][1:])],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans_file.write_text(json.dumps(plans))
