"""Which trainers and planners nnU-Net finds, and the code that trainers are made of.

    python -m nnunet_godc.study.trainers TRAINER... -- PLANNER...

nnU-Net is asked in a process of its own, since it loads torch, and only where looking at files does not answer already.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from nnunet_godc.combined_names import parts_of
from nnunet_godc.errors import UserError
from nnunet_godc.spelling import closest_match, closest_trainer, names_of_subclasses

PACKAGES = {"nnunetv2": "nnunetv2", "nnunet_godc": "nnunet-godc"}  # by module; of other bases, the module's name


@dataclass(frozen=True)
class Code:
    """What a trainer is made of.

    Attributes:
        sources: SHA-256 of each class of its hierarchy, and of each function, class and constant that these use, by
            qualified name, as far as they lie outside of installed packages. Comments and layout do not count.
        versions: of the installed packages that classes of the hierarchy lie in.
        files: SHA-256 of the files that `sources` lie in. Where none has changed, nothing has.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: Code) -> list[str]:
        """What `other` has otherwise, in words; empty for code that trains alike."""
        packages = sorted(self.versions.keys() | other.versions.keys())
        names = sorted(self.sources.keys() | other.sources.keys())
        return [name for name in names if self.sources.get(name) != other.sources.get(name)] + [
            f"{package} {self.versions.get(package)} -> {other.versions.get(package)}"
            for package in packages
            if self.versions.get(package) != other.versions.get(package)
        ]

    def is_untouched(self) -> bool:
        """Whether files and packages are as they were when this was written down."""
        return all(sha256_of(Path(path)) == digest for path, digest in self.files.items()) and all(
            package_version(package) == number for package, number in self.versions.items()
        )


@dataclass(frozen=True)
class Answer:
    """What nnU-Net finds.

    Attributes:
        code: of every trainer that was found, by its name.
        unknown: names of trainers and planners that were not, with the nearest that exists, if any is near.
    """

    code: Mapping[str, Code]
    unknown: Mapping[str, str | None]


def look_up(trainers: Sequence[str], planners: Sequence[str] = (), known: Mapping[str, Code] | None = None) -> Answer:
    """Looks for trainers and planners.

    Args:
        trainers: names.
        planners: names.
        known: code of trainers as it was at an earlier time.

    Raises:
        UserError: nnU-Net cannot be asked, as when a module in a folder of nnUNet_extTrainer fails.
    """
    code: dict[str, Code] = {}
    for name in dict.fromkeys(trainers):
        before = (known or {}).get(name)
        if before is not None and before.files and before.is_untouched():
            code[name] = before
        elif (place := _place_of(name)) is not None and _is_installed(place[1]):
            code[name] = Code(versions={package: package_version(package) for package in place[0]})
    asked = [name for name in dict.fromkeys(trainers) if name not in code]
    asked_planners = [name for name in dict.fromkeys(planners) if name not in _classes_in_source()]
    if not asked and not asked_planners:
        return Answer(code, {})
    command = [sys.executable, "-m", "nnunet_godc.study.trainers", *asked, "--", *asked_planners]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"nnU-Net cannot look for trainers: {last[0]}; `nnunet-godc doctor` says more.")
    found = json.loads(answer.stdout)
    return Answer(code | {name: Code(**values) for name, values in found["code"].items()}, found["unknown"])


def _place_of(trainer: str) -> tuple[tuple[str, ...], Path] | None:
    """As `_classes_in_source` has it; those that are combined by name are made in our own package."""
    ours = importlib.util.find_spec("nnunet_godc.trainers")
    if trainer not in _classes_in_source() and ours is not None and ours.origin and parts_of(trainer) is not None:
        return ("nnunetv2", "nnunet-godc"), Path(ours.origin)
    return _classes_in_source().get(trainer)


@cache
def _classes_in_source() -> dict[str, tuple[tuple[str, ...], Path]]:
    """The classes that are written down where nnU-Net looks, with the packages that they lie in, and their file.

    The first that nnU-Net comes across counts. Most trainers are found here without a search, which takes seconds.
    """
    nnunet, ours = (importlib.util.find_spec(name) for name in ("nnunetv2", "nnunet_godc.trainers"))
    folders: list[tuple[tuple[str, ...], Path]] = [
        (("nnunetv2",), Path(place, part))
        for place in (nnunet.submodule_search_locations or () if nnunet else ())
        for part in ("training/nnUNetTrainer", "experiment_planning")
    ]
    folders += [((), folder) for folder in _users_folders()]
    for place in ours.submodule_search_locations or () if ours else ():
        folders.append((("nnunetv2", "nnunet-godc"), Path(place)))
    found: dict[str, tuple[tuple[str, ...], Path]] = {}
    for packages, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r"^class (\w+)", text, re.MULTILINE):
                found.setdefault(name, (packages, path))
    return found


def _users_folders() -> list[Path]:
    return [Path(place) for place in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if place.strip()]


def _is_installed(path: Path) -> bool:
    standard = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or not standard.isdisjoint(path.parents)


def package_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def sha256_of(path: Path) -> str | None:
    """None where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# The rest runs in the process that asks nnU-Net.


class _Hierarchy:
    """Gathers the code of a trainer: that of its classes, and of all that they name in their modules."""

    def __init__(self, trainer: type) -> None:
        self.sources: dict[str, str] = {}
        self.files: set[Path] = set()
        self.packages: set[str] = set()
        for part in trainer.__mro__:
            self._add(part)
            name = part.__module__.partition(".")[0]
            if (module := _module_of(part)) is not None and not _is_ours(module):
                self.packages.add(PACKAGES.get(name, name))

    @property
    def code(self) -> Code:
        return Code(
            dict(sorted(self.sources.items())),
            {package: package_version(package) for package in sorted(self.packages) if package_version(package)},
            {str(path): sha256_of(path) or "" for path in sorted(self.files)},
        )

    def _add(self, thing: Any) -> None:
        module, name = _module_of(thing), f"{thing.__module__}.{thing.__qualname__}"
        if module is None or name in self.sources or not _is_ours(module):
            return
        self.files.add(Path(str(module.__file__)))
        try:
            # nnU-Net forgets the user's modules, of which `inspect` needs to know
            text = textwrap.dedent(inspect.getsource(getattr(module, thing.__qualname__, thing)))
        except (OSError, TypeError):  # made as it is imported, like the trainers of a schedule: what it was made with
            self._note(
                name, sorted((key, constant) for key, value in vars(thing).items() if (constant := _constant(value)))
            )
            return
        self._note(name, _without_layout(text))
        for used, value in _names_in(text, module):
            if inspect.isclass(value) or inspect.isfunction(value):
                self._add(value)
            elif (constant := _constant(value)) is not None:
                self._note(f"{module.__name__}.{used}", constant)

    def _note(self, name: str, content: object) -> None:
        self.sources[name] = hashlib.sha256(str(content).encode()).hexdigest()


def _module_of(thing: Any) -> ModuleType | None:
    """The module that something is defined in."""
    try:
        return importlib.import_module(thing.__module__)
    except (ImportError, AttributeError):
        return None


def _names_in(text: str, module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What code names of its module, and of other modules that it reads attributes of or imports inside a function."""
    nodes = list(ast.walk(ast.parse(text)))
    known = dict(vars(module))
    for node in nodes:
        with contextlib.suppress(ImportError):
            if isinstance(node, ast.ImportFrom):
                source = importlib.import_module("." * node.level + (node.module or ""), module.__package__)
                known |= {alias.asname or alias.name: getattr(source, alias.name, None) for alias in node.names}
            elif isinstance(node, ast.Import):
                known |= {alias.asname: importlib.import_module(alias.name) for alias in node.names if alias.asname}
    for node in nodes:
        names = _dotted(node)
        value = known.get(names[0]) if names else None
        used = names[:1]
        for name in names[1:]:
            if not isinstance(value, ModuleType) or not _is_ours(value):
                break
            value = getattr(value, name, None)
            used.append(name)
        if value is not None and not isinstance(value, ModuleType):
            yield ".".join(used), value


def _is_ours(module: ModuleType) -> bool:
    """Whether a module lies outside of installed packages."""
    file = getattr(module, "__file__", None)
    return file is not None and not _is_installed(Path(file))


def _dotted(node: ast.AST) -> list[str]:
    """`a.b.c` as its parts; nothing for other expressions."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return [*before, node.attr] if before else []
    return []


def _constant(value: Any) -> str | None:
    """The text of a plain value, the same in every process; None for others."""
    if isinstance(value, (str, int, float, bytes, type(None), re.Pattern, Path)):
        return repr(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_constant(part) for part in value]
        ordered = sorted(map(str, parts)) if isinstance(value, (set, frozenset)) else parts
        return None if None in parts else f"{type(value).__name__}{ordered}"
    if isinstance(value, Mapping):
        return _constant([[key, entry] for key, entry in value.items()])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _constant([type(value).__name__, *(getattr(value, part.name) for part in dataclasses.fields(value))])
    return None


def _without_layout(text: str) -> str:
    """Python without comments, docstrings and spaces, by whichever version of Python it is read."""
    parts: list[str] = []
    new_line = True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE):
            parts.append({tokenize.INDENT: "{", tokenize.DEDENT: "}"}.get(token.type, ";"))
            new_line = True
            continue
        # a text that begins a line is a docstring
        if not (new_line and token.type == tokenize.STRING):
            parts.append("".join(token.string.split()))
        new_line = False
    return "".join(parts)


def ask_nnunet(trainers: Sequence[str], planners: Sequence[str]) -> dict[str, Any]:
    """What `look_up` makes an `Answer` of."""
    import nnunetv2
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    def find_trainer(name: str) -> type | None:
        try:
            found: type = recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            return None
        return found

    def find_planner(name: str) -> type | None:
        folder = str(Path(nnunetv2.__path__[0], "experiment_planning"))
        found: type | None = recursive_find_python_class(folder, name, "nnunetv2.experiment_planning")
        return found

    found = {name: find_trainer(name) for name in trainers}
    lost_planners = [name for name in planners if find_planner(name) is None]
    # Looking imports all classes that there are, which are the candidates for what was meant.
    known_trainers, known_planners = names_of_subclasses(nnUNetTrainer), names_of_subclasses(ExperimentPlanner)
    near = {name: closest_trainer(name, known_trainers) for name, trainer in found.items() if trainer is None}
    near |= {name: closest_match(name, known_planners) for name in lost_planners}
    sys.path[:0] = [str(folder.absolute()) for folder in _users_folders()]  # where nnU-Net has imported them from
    code = {name: _Hierarchy(trainer).code.to_json() for name, trainer in found.items() if trainer is not None}
    return {"code": code, "unknown": near}


def main(arguments: list[str]) -> None:
    separator = arguments.index("--")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        answer = ask_nnunet(arguments[:separator], arguments[separator + 1 :])
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
