"""What a release has to do where it is installed: finds its trainers, converts a collection, trains and predicts.

Run in an empty folder by the Python of the environment that is tried; its last line tells the versions.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nnunet_godc
from nnunet_godc.demo.collection import write_phantom_collection

TRAINER = """
from nnunet_godc.trainers import nnUNetTrainerGODCLFAM
from nnunet_godc.training import ScheduleMixin


class nnUNetTrainerTwoSteps(ScheduleMixin, nnUNetTrainerGODCLFAM):
    epochs = 1
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1
"""


def run(*command: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    assert "site-packages" in nnunet_godc.__file__, nnunet_godc.__file__
    here = Path.cwd()
    for name in ("raw", "preprocessed", "results"):
        (here / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(here / name)
    (here / "trainers").mkdir()
    (here / "trainers" / "mine.py").write_text(TRAINER)
    os.environ["nnUNet_extTrainer"] = str(here / "trainers")
    os.environ["nnUNet_n_proc_DA"] = "1"
    os.environ["nnUNet_def_n_proc"] = "1"

    run("nnunet-godc", "doctor")
    write_phantom_collection(here / "collection", training=5, test=1)
    run("nnunet-godc", "convert", "lits", "-i", "collection", "-d", "501", "-np", "0")
    run("nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "2d", "-np", "1", "--verify_dataset_integrity")
    plans = ("-p", "nnUNetPlans")
    run("nnUNetv2_train", "501", "2d", "0", *plans, "-tr", "nnUNetTrainerTwoSteps", "-device", "cpu")
    images = str(next((here / "raw").glob("Dataset501_*")) / "imagesTs")
    model = ("-d", "501", "-c", "2d", "-f", "0", *plans, "-tr", "nnUNetTrainerTwoSteps")
    run("nnUNetv2_predict", "-i", images, "-o", "predicted", *model, "-device", "cpu", "--disable_tta")
    assert list(Path("predicted").glob("*.nii.gz"))
    versions = (f"{name} {version(name)}" for name in ("nnunetv2", "torch", "numpy", "pandas", "pydicom"))
    print(f"all right with Python {sys.version.split()[0]}, {', '.join(versions)}")


main()
