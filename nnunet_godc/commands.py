"""The commands that this package starts, and how long they take in words."""

import shutil
import sysconfig

from nnunet_godc.errors import UserError


def find_command(name: str) -> str:
    """Path of a command installed beside this Python, or else on the search path.

    Raises:
        UserError: there is none.
    """
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} is not to be found; install nnU-Net with: pip install nnunetv2")
    return found


def duration(seconds: float) -> str:
    """``'8 s'``, ``'1 min 20 s'``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
