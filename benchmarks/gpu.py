"""Everything that is measured on a GPU without nnU-Net, in one command and a given time.

Needs PyTorch and dynamic_network_architectures; nnunet_godc need not be installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Share of the time; a case of the loss and of the deformable convolution takes a few seconds more to warm up.
LOSS, DEFORM_CONV, TRAINING_STEP = 0.2, 0.15, 0.65
CASES = {"loss.py": 2, "deform_conv.py": 6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ...")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all of it, about (default: 8.5)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the results")
    arguments = parser.parse_args()
    minutes = arguments.minutes
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    commands = {
        "loss.py": ["--seconds", f"{60 * minutes * LOSS / CASES['loss.py'] / 2:.1f}"],
        "deform_conv.py": ["--seconds", f"{60 * minutes * DEFORM_CONV / CASES['deform_conv.py'] / 2:.1f}"],
        "training_step.py": ["--minutes", f"{minutes * TRAINING_STEP:.2f}"],
    }
    failed = []
    for script, options in commands.items():
        command = [sys.executable, str(HERE / script), "--device", arguments.device, "--out", str(arguments.out)]
        if subprocess.run([*command, *options], env={**os.environ, "PYTHONPATH": path}).returncode:
            failed.append(script)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
