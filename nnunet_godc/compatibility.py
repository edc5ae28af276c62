"""Which nnU-Net this package works with."""

import re
from importlib.metadata import PackageNotFoundError, version

from nnunet_godc.errors import UserError

SUPPORTED = "nnunetv2>=2.8,<3"
_OLDEST = (2, 8)
_FIRST_TOO_NEW = (3, 0)


def nnunet_problem() -> str | None:
    """What is wrong with the installed nnU-Net, in one sentence with its remedy; None if nothing is.

    Reads the version from the package's metadata and imports nothing of it.
    """
    remedy = f"run `pip install '{SUPPORTED}'`"
    try:
        installed = version("nnunetv2")
    except PackageNotFoundError:
        return f"nnU-Net is not installed in this Python: {remedy}."
    numbers = re.match(r"(\d+)(?:\.(\d+))?", installed)
    if numbers is None:
        return f"nnU-Net's version {installed!r} cannot be read, and nnunet-godc needs {SUPPORTED}: {remedy}."
    release = (int(numbers[1]), int(numbers[2] or 0))
    if release < _OLDEST:
        return f"nnU-Net {installed} is too old, nnunet-godc needs {SUPPORTED}: {remedy}."
    if release >= _FIRST_TOO_NEW:
        return f"nnU-Net {installed} is too new, nnunet-godc needs {SUPPORTED}: {remedy}."
    return None


def require_supported_nnunet() -> None:
    """Raises:
    UserError: nnU-Net is missing, too old or too new.
    """
    problem = nnunet_problem()
    if problem is not None:
        raise UserError(problem)
