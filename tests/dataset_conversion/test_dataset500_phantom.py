import json
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_godc.dataset_conversion.Dataset500_Phantom as script

FIVE_CASES = ["--training", "5", "--test", "0"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(*arguments):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["Dataset500_Phantom.py", *arguments])
        script.main()

    return run


def test_the_dataset_is_written_into_nnunet_raw_under_its_identifier(run, tmp_path, capsys):
    run("-d", "7", *FIVE_CASES)
    folder = tmp_path / "Dataset007_Phantom"
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 5
    assert len(list((folder / "imagesTr").iterdir())) == 5
    assert str(folder) in capsys.readouterr().out


def test_an_existing_dataset_is_not_overwritten(run, tmp_path):
    (tmp_path / "Dataset500_Phantom").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        run(*FIVE_CASES)
    assert not any((tmp_path / "Dataset500_Phantom").iterdir())


@pytest.mark.parametrize("identifier", ["0", "1000"])
def test_an_identifier_that_nnunet_does_not_allow_is_refused(run, tmp_path, identifier):
    with pytest.raises(SystemExit, match=f"from 1 to 999, not {identifier}"):
        run("-d", identifier, *FIVE_CASES)
    assert not any(tmp_path.iterdir())


def test_an_unset_nnunet_raw_is_reported(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setattr(sys, "argv", ["Dataset500_Phantom.py"])
    with pytest.raises(SystemExit, match="nnUNet_raw is not set"):
        script.main()


def test_it_runs_as_a_script():
    finished = subprocess.run(
        [sys.executable, Path(script.__file__), "--help"], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert "--training" in finished.stdout
