"""Say whether everything that training needs is in place, and what to do where it is not."""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import site
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import nnunet_godc
from nnunet_godc.compatibility import nnunet_problem

PLUGIN_FOLDER = Path(nnunet_godc.__file__).with_name("_nnunet_plugin")
HOOK = "nnunet_godc.pth"
REINSTALL = "run `pip install --force-reinstall --no-deps nnunet-godc` (or from your checkout: `pip install -e .`)."
SEE_ABOVE = "fix what is reported above, or reinstall nnunet-godc."
_FOLDERS = {
    "nnUNet_raw": "the data sets as you bring them",
    "nnUNet_preprocessed": "plans and preprocessed data",
    "nnUNet_results": "trained models",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. A problem has a remedy; a note only tells."""

    status: Literal["ok", "note", "problem"]
    subject: str
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", action="store_true", help="for a bug report: the same, without paths and user names"
    )


def run(arguments: argparse.Namespace) -> int:
    shown: Callable[[str], str] = without_private_names if arguments.report else str
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "Versions": check_versions,
        "nnU-Net's folders": check_folders,
        "Trainers": check_trainers,
        "CUDA": check_cuda,
        "Deformable convolution": check_backends,
    }
    number_of_problems = 0
    for title, check in checks.items():
        print(title, flush=True)  # before the check: importing torch and nnU-Net takes a while
        findings = list(check())
        print(shown(format_findings(findings)), end="\n\n")
        number_of_problems += sum(finding.status == "problem" for finding in findings)
    if number_of_problems == 0:
        print("Everything that training needs is in place.")
        return 0
    print("1 problem needs doing." if number_of_problems == 1 else f"{number_of_problems} problems need doing.")
    return 1


def format_findings(findings: Iterable[Finding]) -> str:
    """Aligned lines: status, subject, detail; below a problem, what to do about it."""
    findings = list(findings)
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"  {finding.status:<7}  {finding.subject:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"  {'':<7}  {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)


def without_private_names(text: str) -> str:
    """The text with `<...>` for each path and user's name in it, so that a stranger may read it.

    The folders that are known are named for what they are. Of any other path all that has no space in it goes.
    """
    known = {
        **{os.environ[variable]: variable for variable in _FOLDERS if os.environ.get(variable)},
        **{entry: "folder of trainers" for entry in _folders_of_trainers() if not _is_plugin_folder(entry)},
        str(PLUGIN_FOLDER.parent): "nnunet_godc",
        sys.executable: "python",
        sys.prefix: "environment",
        str(Path.cwd()): "working folder",
        str(Path.home()): "home",
    }
    for path, name in sorted(known.items(), key=lambda item: -len(item[0])):
        if len(path) > 1:
            text = text.replace(path, f"<{name}>")
    text = re.sub(r"(?<![\w<>/])(?:[A-Za-z]:)?[/\\][^\s:;,()'\"<>]*[^\s:;,()'\"<>.]", "<path>", text)
    user = Path.home().name
    return re.sub(rf"\b{re.escape(user)}\b", "<user>", text) if len(user) > 2 and user != "root" else text


def check_versions() -> Iterator[Finding]:
    yield Finding("ok", "system", platform.platform())
    yield Finding("ok", "python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("ok", "nnunet-godc", f"{nnunet_godc.__version__} ({Path(nnunet_godc.__file__).parent})")
    problem = nnunet_problem()
    if problem is None:
        yield Finding("ok", "nnunetv2", importlib.metadata.version("nnunetv2"))
    else:
        what, _, remedy = problem.rpartition(": ")
        yield Finding("problem", "nnunetv2", what, remedy)
    for name in ("torch", "torchvision", "SimpleITK", "batchgenerators", "batchgeneratorsv2", "numpy"):
        module, failure = _try_import(name)
        if module is None:
            yield Finding("problem", name, failure, f"run `pip install --force-reinstall {name}`.")
        else:
            # A module's own word tells torch's CUDA build, which its metadata may leave out.
            yield Finding("ok", name, getattr(module, "__version__", None) or importlib.metadata.version(name))


def check_folders() -> Iterator[Finding]:
    for variable, purpose in _FOLDERS.items():
        value = os.environ.get(variable)
        folder = Path(value or "")
        if not value:
            yield Finding(
                "problem",
                variable,
                f"is not set ({purpose})",
                f"put `export {variable}=FOLDER` into your shell's profile.",
            )
        elif not folder.exists():
            yield Finding("problem", variable, f"{value} does not exist", f"run `mkdir -p {value}`.")
        elif not folder.is_dir():
            yield Finding("problem", variable, f"{value} is not a folder", f"set {variable} to a folder.")
        elif not os.access(folder, os.W_OK | os.X_OK):
            if variable == "nnUNet_raw":
                yield Finding("note", variable, f"{value} is read-only, which is enough unless you convert data")
            else:
                yield Finding("problem", variable, f"{value} is not writable", f"run `chmod u+rwx {value}`.")
        else:
            free = shutil.disk_usage(folder).free / 2**30
            yield Finding("ok", variable, f"{value} ({free:.0f} GiB free)")


def check_trainers() -> Iterator[Finding]:
    entries = _folders_of_trainers()
    hook_worked = any(_is_plugin_folder(entry) for entry in entries)
    if not hook_worked:
        remedy = REINSTALL if _hook_is_installed() else _export(entries)
        yield Finding("problem", "start-up hook", f"has not added {PLUGIN_FOLDER} to nnUNet_extTrainer", remedy)
    try:
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        from nnunet_godc import trainers
    except Exception as error:
        yield Finding("problem", "import", _in_one_line(error), SEE_ABOVE)
        return

    all_import = True
    for entry in entries:
        if _is_plugin_folder(entry):
            yield Finding("ok", "plug-in folder", entry)
            continue
        if not Path(entry).is_dir():
            yield Finding("note", "your folder", f"{entry} does not exist, and nnU-Net passes over it")
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                # No class has an empty name: nnU-Net imports every module of the folder in vain, which is the check.
                recursive_find_python_class(entry, "", None, entry, cleanup_imports_from_base_folder=True)
        except Exception as error:
            all_import = False
            yield Finding(
                "problem",
                "your folder",
                f"{entry} cannot be imported: {_in_one_line(error)}",
                "fix that module or take its folder out of nnUNet_extTrainer: nnU-Net stops there, before ours.",
            )
        else:
            yield Finding("ok", "your folder", entry)
    if not (hook_worked and all_import):
        return

    for name in trainers.__all__:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                found = recursive_find_trainer_class_by_name(name)
        except Exception as error:
            yield Finding("problem", name, f"is not found by nnU-Net: {_in_one_line(error)}", REINSTALL)
            continue
        place = re.search(r"^Using trainer .* from: (.*)$", output.getvalue(), re.MULTILINE)
        where = place[1] if place else "nnU-Net itself"
        if found is not getattr(trainers, name):
            yield Finding("note", name, f"is hidden by a class of the same name in {where}")
        else:
            yield Finding(
                "ok", name, f"found by nnU-Net in {'the plug-in folder' if _is_plugin_folder(where) else where}"
            )


def check_cuda() -> Iterator[Finding]:
    torch, failure = _try_import("torch")
    if torch is None:
        yield Finding("note", "torch", failure)
    elif torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield Finding("ok", f"device {index}", f"{properties.name}, {memory}, CUDA {torch.version.cuda}")
    else:
        reason = "torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is usable"
        yield Finding("note", "none", f"{reason}: the demo runs, real training (-device cpu) would take weeks")


def check_backends() -> Iterator[Finding]:
    try:
        from nnunet_godc.ops import available_backends
    except Exception as error:
        yield Finding("problem", "import", _in_one_line(error), SEE_ABOVE)
        return
    for name, why_not in available_backends().items():
        yield Finding("ok", name, "usable") if why_not is None else Finding("note", name, f"not usable: {why_not}")


def _folders_of_trainers() -> list[str]:
    return [entry for entry in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if entry.strip()]


def _try_import(name: str) -> tuple[ModuleType | None, str]:
    """The module, or None and why not. A broken installation raises anything, from ImportError to OSError."""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        return None, "is not installed" if error.name == name else f"cannot be imported: {_in_one_line(error)}"
    except Exception as error:
        return None, f"cannot be imported: {_in_one_line(error)}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _hook_is_installed() -> bool:
    """Whether the hook lies where Python reads it, which is not so with `pip install --target` and in PYTHONPATH."""
    return any(Path(folder, HOOK).is_file() for folder in (*site.getsitepackages(), site.getusersitepackages()))


def _export(entries: Iterable[str]) -> str:
    value = os.pathsep.join([*entries, str(PLUGIN_FOLDER)])
    return f"put `export nnUNet_extTrainer={value}` into your shell's profile: Python reads no hook where it lies now."


def _is_plugin_folder(entry: str) -> bool:
    """Whether it is ours. That of another installation serves as well: it holds what this Python's package exports."""
    return Path(entry).parts[-2:] == PLUGIN_FOLDER.parts[-2:]
