"""What a trainer is made of: everything that would train otherwise, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_godc.study.trainers import Code, _Hierarchy, _without_layout, look_up

TRAINER = """\
import numpy
import losses
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCHS = 6
UNUSED = 1


class Base(nnUNetTrainer):
    rate = 0.01


class nnUNetTrainerMine(Base):
    def __init__(self, *arguments, **keywords):
        '''Trains.'''
        super().__init__(*arguments, **keywords)
        self.num_epochs = EPOCHS  # few

    def _build_loss(self):
        from losses import weight

        return losses.Loss(weight, numpy.pi)


class nnUNetTrainerOther(nnUNetTrainer):
    pass


nnUNetTrainerMade = type("nnUNetTrainerMade", (nnUNetTrainerMine,), {"epochs": 5, "__module__": __name__})
"""
LOSSES = """\
STEEPNESS = {"a": (1, 2.5)}


def weight(x):
    return x * STEEPNESS["a"][0]


class Loss:
    def forward(self):
        return 1


def unused():
    return 2
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module of trainers, and one with losses beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # which lags behind edits within a second
    (tmp_path / "losses.py").write_text(LOSSES)
    path = tmp_path / "my_trainer.py"
    path.write_text(TRAINER)
    yield path
    for name in ("my_trainer", "losses"):
        sys.modules.pop(name, None)


def code_of(module: Path, trainer: str = "nnUNetTrainerMine") -> Code:
    for name in ("my_trainer", "losses"):
        sys.modules.pop(name, None)
    scope = __import__(module.stem)
    return _Hierarchy(getattr(scope, trainer)).code


def test_it_names_the_hierarchy_and_what_it_uses(module: Path) -> None:
    code = code_of(module)
    assert list(code.sources) == [
        *("losses.Loss", "losses.STEEPNESS", "losses.weight"),
        *("my_trainer.Base", "my_trainer.EPOCHS", "my_trainer.nnUNetTrainerMine"),
    ]
    assert list(code.versions) == ["nnunetv2"]
    assert sorted(Path(path).name for path in code.files) == ["losses.py", "my_trainer.py"]


@pytest.mark.parametrize(
    ("file", "before", "after", "changed"),
    [
        ("my_trainer.py", "EPOCHS = 6", "EPOCHS = 3", ["my_trainer.EPOCHS"]),
        ("my_trainer.py", "rate = 0.01", "rate = 0.02", ["my_trainer.Base"]),
        ("my_trainer.py", "super().__init__(*", "super().__init__(1, *", ["my_trainer.nnUNetTrainerMine"]),
        ("losses.py", "return x *", "return x +", ["losses.weight"]),
        ("losses.py", "2.5", "2.6", ["losses.STEEPNESS"]),
        ("losses.py", "return 1", "return 3", ["losses.Loss"]),
        ("losses.py", "return 2", "return 3", []),
        ("my_trainer.py", "UNUSED = 1", "UNUSED = 2", []),
        ("my_trainer.py", "  # few", "  # many", []),
        ("my_trainer.py", "'''Trains.'''", "'''Trains well.'''", []),
        ("my_trainer.py", "    rate", "    # as ever\n\n    rate ", []),
        ("my_trainer.py", "(nnUNetTrainer):\n    pass", "(nnUNetTrainer):\n    rate = 1", []),
    ],
)
def test_what_would_train_otherwise_is_noticed_and_nothing_else(
    module: Path, file: str, before: str, after: str, changed: list[str]
) -> None:
    first = code_of(module)
    path = module.with_name(file)
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    assert not first.is_untouched()
    second = code_of(module)
    assert second.is_untouched()
    assert first.differences(second) == changed


def test_a_trainer_that_is_made_as_its_module_is_read_has_what_it_was_made_with(module: Path) -> None:
    first = code_of(module, "nnUNetTrainerMade")
    assert {"my_trainer.nnUNetTrainerMade", "my_trainer.nnUNetTrainerMine"} <= first.sources.keys()
    module.write_text(TRAINER.replace('"epochs": 5', '"epochs": 6'))
    assert first.differences(code_of(module, "nnUNetTrainerMade")) == ["my_trainer.nnUNetTrainerMade"]


def test_versions_of_packages_differ_in_words() -> None:
    first, second = Code(versions={"nnunetv2": "2.8.1"}), Code(versions={"nnunetv2": "2.9"})
    assert first.differences(second) == ["nnunetv2 2.8.1 -> 2.9"]
    assert not first.is_untouched() or not second.is_untouched()


def test_an_installed_trainer_is_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    (code,) = look_up(["nnUNetTrainerDiceLoss"]).code.values()
    assert (code.sources, list(code.versions)) == ({}, ["nnunetv2"])
    assert code.is_untouched()


def test_code_that_was_known_and_has_not_changed_needs_no_search(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"nnUNetTrainerMine": code_of(module)}
    monkeypatch.setattr("subprocess.run", None)
    assert look_up(["nnUNetTrainerMine"], known=known).code == known


def test_what_stands_deeper_is_other_code() -> None:
    inside = _without_layout("if a:\n    b()\n    c()\n")
    assert inside != _without_layout("if a:\n    b()\nc()\n")
    assert inside == _without_layout("if a:  # why\n\n  b( )\n  c()")


@pytest.mark.slow
def test_nnunets_own_search_finds_the_users_modules_again(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(module.parent), prepend=":")
    answer = look_up(["nnUNetTrainerMine", "nnUNetTrainerGODC_50epochs", "nnUNetTrainerMain"])
    assert answer.code["nnUNetTrainerMine"] == code_of(module)
    assert "nnunet_godc.losses.godc.GODCLoss" in answer.code["nnUNetTrainerGODC_50epochs"].sources
    assert answer.unknown == {"nnUNetTrainerMain": "nnUNetTrainerMine"}
