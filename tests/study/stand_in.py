"""Stands in for every command of a study: leaves what the real one leaves, and a line in the diary.

python stand_in.py ROOT COMMAND ARGUMENT...
"""

import os
import sys
import time
from itertools import pairwise
from pathlib import Path

root, name, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
with (root / "diary").open("a") as diary:
    print(name, *arguments, file=diary)
while (root / "wait").exists() and ((root / "wait").read_text() or "nnUNetv2_train") in " ".join([name, *arguments]):
    time.sleep(0.02)
if (root / "edit").exists() and name == "nnUNetv2_train":
    with open((root / "edit").read_text(), "a") as source:  # noqa: PTH123
        source.write("\n# edited")
if (root / "fail").exists() and (root / "fail").read_text() in " ".join([name, *arguments]):
    sys.exit("it went wrong")

preprocessed, results = (Path(os.environ[f"nnUNet_{part}"]) / "Dataset901_Tiny" for part in ("preprocessed", "results"))
options = dict(pairwise(arguments))
if name == "nnUNetv2_plan_and_preprocess":
    preprocessed.mkdir(exist_ok=True)
    (preprocessed / "nnUNetPlans.json").write_text("{}")
elif name == "python" and arguments[2] == "vary":
    (preprocessed / f"{arguments[4]}.json").write_text("{}")
elif name == "python":
    (preprocessed / "gt_segmentations").mkdir(exist_ok=True)
elif name == "nnUNetv2_train":
    fold = results / f"{options['-tr']}__{options['-p']}__{arguments[1]}" / f"fold_{arguments[2]}"
    (fold / "validation").mkdir(parents=True, exist_ok=True)
    (fold / "checkpoint_final.pth").touch()
    (fold / "validation" / "summary.json").touch()
elif name in ("nnunet-godc", "nnUNetv2_predict"):
    out = Path(options.get("--out") or options["-o"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text("Evaluated: " + " ".join(Path(word).name for word in arguments[1:-2]))
