"""Windows and macOS lack modules and functions that Linux has; all but studies imports and begins without them."""

import subprocess
import sys

SCRIPT = """
import importlib, os, pkgutil, sys

for name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "triton"):
    sys.modules[name] = None  # importing it fails from here on
for name in ("fork", "forkpty", "geteuid", "getuid", "killpg", "mkfifo", "sched_getaffinity", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
os.environ["USERNAME"] = "somebody"  # Windows sets it, and MONAI asks for it

import nnunet_godc

for module in pkgutil.walk_packages(nnunet_godc.__path__, "nnunet_godc."):
    kernels = module.name.endswith(("_triton_kernels", "_triton_points"))  # imported where a GPU runs them
    if not (kernels or module.name.startswith(("nnunet_godc.study", "nnunet_godc.demo"))):
        importlib.import_module(module.name)
from nnunet_godc.cli import main

for command in ("convert", "evaluate", "doctor"):
    try:
        main([command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
print("imported")
"""


def test_all_but_studies_needs_nothing_of_posix_alone() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("imported\n")
