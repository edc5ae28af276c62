"""Imported first by scripts that also run where the package is not installed: from a checkout, with what there is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

# at the end: an installed package has the trainers, too
sys.path.append(str(Path(__file__).resolve().parents[1]))


def _name_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One sentence for a package that is not installed; a traceback for everything else."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if kind is ModuleNotFoundError and package and not package.startswith(("_", "nnunet_godc")):
        script = Path(sys.argv[0]).name
        print(f"{script}: {package} is not installed in this Python; install it with pip.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _name_missing_package
