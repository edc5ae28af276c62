import argparse
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import nnunet_godc
from nnunet_godc import cli
from nnunet_godc.errors import UserError


def modules_loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code`."""
    code = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in finished.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import nnunet_godc",
        "from nnunet_godc.cli import main; main(['--help'])",
        "from nnunet_godc.cli import main; main(['demo', '--help'])",
        "from nnunet_godc.cli import main; main(['doctor', '--help'])",
        "from nnunet_godc.cli import main; main(['evaluate', '--help'])",
        "from nnunet_godc.cli import main; main(['warm-start', '--help'])",
    ],
)
def test_nothing_heavy_is_loaded_to_import_or_to_help(code: str):
    loaded = modules_loaded_by(code)
    assert "nnunet_godc" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "nnunetv2", "matplotlib", "SimpleITK"})


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if name not in text] == []


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"nnunet-godc {nnunet_godc.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["trian"], ["demo"], ["warm-start", "stock.pth", "out.pth"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert "usage: nnunet-godc" in capsys.readouterr().err


def test_user_error_becomes_one_sentence_and_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(arguments: argparse.Namespace) -> int:
        raise UserError("the plan has no stage to align: choose another.")

    monkeypatch.setattr(cli.doctor, "run", fail)
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nnunet-godc: the plan has no stage to align: choose another.\n")


def test_demo_writes_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folders = []
    monkeypatch.setattr("nnunet_godc.demo.run_demo", folders.append)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert folders == [tmp_path]


def test_warm_start_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr("nnunet_godc.training.warm_start.warm_start", lambda *arguments: calls.append(arguments))
    assert cli.main(["warm-start", "stock.pth", "out.pth", "-tr", "nnUNetTrainerLFAM"]) == 0
    assert calls == [(Path("stock.pth"), Path("out.pth"), "nnUNetTrainerLFAM")]


def test_sigterm_raises_while_a_command_runs_and_not_afterwards(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    during = []

    def run(arguments):
        during.append(signal.getsignal(signal.SIGTERM))
        return 0

    monkeypatch.setattr(cli.doctor, "run", run)
    assert cli.main(["doctor"]) == 0
    assert during != [before]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_torch_warns_of_its_own_future_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    def run(arguments: argparse.Namespace) -> int:
        for module in ("torch.jit._script", "mine"):
            warnings.warn_explicit(f"{module} will change", FutureWarning, "script.py", 1, module=module)
        return 0

    monkeypatch.setattr(cli.COMMANDS["doctor"], "run", run)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert cli.main(["doctor"]) == 0
    assert [str(warning.message) for warning in shown] == ["mine will change"]
