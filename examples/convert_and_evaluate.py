"""From a collection to a comparison in Python: a collection is converted, two methods are evaluated and compared.

    python examples/convert_and_evaluate.py FOLDER    # a minute

The collection is the demo's, CT-like phantoms in the layout of LiTS. The "methods" are the reference moved by one voxel
and by two; put folders of predictions in their place.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import SimpleITK

from nnunet_godc.cli import main as nnunet_godc
from nnunet_godc.demo.collection import write_phantom_collection
from nnunet_godc.evaluation import evaluate


def predict(references: Path, out: Path, voxels: int) -> None:
    """Stands for a network: the reference moved along x."""
    out.mkdir()
    for path in sorted(references.glob("*.nii.gz")):
        reference = SimpleITK.ReadImage(path)
        moved = SimpleITK.GetImageFromArray(np.roll(SimpleITK.GetArrayViewFromImage(reference), voxels, axis=2))
        moved.CopyInformation(reference)
        SimpleITK.WriteImage(moved, out / path.name)


def main() -> None:
    folder = Path(sys.argv[1])
    write_phantom_collection(folder / "collection", training=6, test=0)
    os.environ["nnUNet_raw"] = str(folder / "raw")
    (folder / "raw").mkdir()
    # the command, and its exit status
    status = nnunet_godc(["convert", "lits", "-i", str(folder / "collection")])
    if status:
        sys.exit(status)

    dataset = folder / "raw" / "Dataset501_LiTS"
    methods = {"MovedByOne": 1, "MovedByTwo": 2}
    for name, voxels in methods.items():
        predict(dataset / "labelsTr", folder / name, voxels)
    # nnU-Net puts the plans beside its predictions; of them the names and the reader of the files are used
    plans = folder / "plans.json"
    plans.write_text(
        json.dumps({"dataset_name": dataset.name, "plans_name": "-", "image_reader_writer": "SimpleITKIO"})
    )
    found = evaluate(
        predictions=[folder / name for name in methods],
        references=dataset / "labelsTr",
        dataset_json=dataset / "dataset.json",
        plans=plans,
        out=folder / "evaluation",
        baseline="MovedByOne",
        metrics=["overlap", "surface"],
    )
    for sentence in found.comparisons.query("metric == 'Dice'")["sentence"]:
        print(sentence)
    print(f"Written: {folder / 'evaluation' / 'report.md'}")


if __name__ == "__main__":
    main()
