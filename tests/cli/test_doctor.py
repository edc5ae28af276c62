import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_godc import trainers
from nnunet_godc.cli import doctor, main
from nnunet_godc.cli.doctor import Finding

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """nnU-Net's three folders, as they should be."""
    for variable in FOLDERS:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return {variable: tmp_path / variable for variable in FOLDERS}


@pytest.fixture
def plugin_folder(monkeypatch: pytest.MonkeyPatch) -> str:
    """nnUNet_extTrainer as the start-up hook leaves it where the user has set nothing."""
    monkeypatch.setenv("nnUNet_extTrainer", str(doctor.PLUGIN_FOLDER))
    return str(doctor.PLUGIN_FOLDER)


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "problem"]


@pytest.mark.usefixtures("folders", "plugin_folder")
def test_nothing_needs_doing_where_all_is_in_place(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "problem" not in report
    assert "->" not in report
    assert report.endswith("\nEverything that training needs is in place.\n")
    for title in ("Versions", "nnU-Net's folders", "Trainers", "CUDA", "Deformable convolution"):
        assert f"{title}\n  " in report


@pytest.mark.usefixtures("plugin_folder")
def test_every_trainer_is_looked_up_as_nnunet_does():
    found = {finding.subject: finding for finding in doctor.check_trainers()}
    for name in trainers.__all__:
        assert (found[name].status, found[name].detail) == ("ok", "found by nnU-Net in the plug-in folder")


def test_hook_that_did_nothing_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    [problem] = problems(list(doctor.check_trainers()))
    assert problem.subject == "start-up hook"
    assert "reinstall" in problem.remedy


def test_where_python_reads_no_hook_the_folder_to_export_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    monkeypatch.setattr("site.getsitepackages", lambda: [])
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path))
    [problem] = problems(list(doctor.check_trainers()))
    assert f"`export nnUNet_extTrainer={tmp_path}{os.pathsep}{doctor.PLUGIN_FOLDER}`" in problem.remedy


def test_users_own_folder_is_imported(tmp_path: Path, plugin_folder: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a_module_of_the_user.py").write_text("class nnUNetTrainerMine: ...\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), plugin_folder]))
    findings = list(doctor.check_trainers())
    assert Finding("ok", "your folder", str(tmp_path)) in findings
    assert problems(findings) == []


def test_users_own_folder_that_cannot_be_imported_is_a_problem(
    tmp_path: Path, plugin_folder: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "another_module_of_the_user.py").write_text("import a_module_that_does_not_exist\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), plugin_folder]))
    [problem] = problems(list(doctor.check_trainers()))
    assert str(tmp_path) in problem.detail
    assert "No module named 'a_module_that_does_not_exist'" in problem.detail


def test_users_own_class_that_hides_one_of_ours_is_told(
    tmp_path: Path, plugin_folder: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a_module_that_hides_ours.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerGODCLFAM(nnUNetTrainer): ...\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path), plugin_folder]))
    hidden = [finding for finding in doctor.check_trainers() if finding.subject == "nnUNetTrainerGODCLFAM"]
    assert hidden == [Finding("note", "nnUNetTrainerGODCLFAM", f"is hidden by a class of the same name in {tmp_path}")]


def test_folders_in_place_are_ok(folders: dict[str, Path]):
    findings = list(doctor.check_folders())
    assert [finding.subject for finding in findings] == list(folders)
    assert {finding.status for finding in findings} == {"ok"}


@pytest.mark.parametrize("variable", FOLDERS)
@pytest.mark.parametrize("value", [None, ""])
def test_unset_folder_is_a_problem(
    folders: dict[str, Path], variable: str, value: str | None, monkeypatch: pytest.MonkeyPatch
):
    assert variable in folders
    monkeypatch.delenv(variable)
    if value is not None:
        monkeypatch.setenv(variable, value)
    [problem] = problems(list(doctor.check_folders()))
    assert problem.subject == variable
    assert "is not set" in problem.detail
    assert f"export {variable}=" in problem.remedy


def test_folder_that_does_not_exist_is_a_problem(folders: dict[str, Path]):
    folders["nnUNet_results"].rmdir()
    [problem] = problems(list(doctor.check_folders()))
    assert problem.detail == f"{folders['nnUNet_results']} does not exist"
    assert problem.remedy == f"run `mkdir -p {folders['nnUNet_results']}`."


def test_file_in_place_of_a_folder_is_a_problem(folders: dict[str, Path]):
    folders["nnUNet_preprocessed"].rmdir()
    folders["nnUNet_preprocessed"].touch()
    [problem] = problems(list(doctor.check_folders()))
    assert problem.detail.endswith("is not a folder")


@pytest.mark.usefixtures("folders")
def test_only_the_raw_folder_may_be_read_only(monkeypatch: pytest.MonkeyPatch):
    # The superuser may write everywhere, so the mode of a folder would not tell here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [finding.status for finding in doctor.check_folders()] == ["note", "problem", "problem"]


def test_missing_cuda_is_no_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [finding] = doctor.check_cuda()
    assert (finding.status, finding.remedy) == ("note", "")


def test_backend_that_is_not_usable_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nnunet_godc.ops.available_backends", lambda: {"reference": None, "fast": "needs a GPU"})
    assert list(doctor.check_backends()) == [
        Finding("ok", "reference", "usable"),
        Finding("note", "fast", "not usable: needs a GPU"),
    ]


def test_remedies_stand_aligned_below_their_problems():
    findings = [Finding("ok", "a", "good"), Finding("problem", "longer", "bad", "fix it.")]
    assert doctor.format_findings(findings) == (
        "  ok       a       good\n  problem  longer  bad\n                   -> fix it."
    )


@pytest.mark.usefixtures("folders", "plugin_folder")
@pytest.mark.parametrize(
    ("torch", "words"),
    [
        ("raise OSError('libcudart.so: cannot open shared object file')", "cannot open shared object file"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "is not installed"),
    ],
)
def test_broken_torch_is_reported_in_words(tmp_path: Path, torch: str, words: str):
    (tmp_path / "torch.py").write_text(torch + "\n")
    finished = subprocess.run(
        [sys.executable, "-c", "from nnunet_godc.cli import main; raise SystemExit(main(['doctor']))"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert words in finished.stdout
    assert "-> run `pip install --force-reinstall torch`." in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_a_report_for_strangers_has_no_path_and_no_name_of_a_user(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    home = tmp_path / "Jane Doe"
    own = home / "my trainers"
    own.mkdir(parents=True)
    (own / "mine.py").write_text("raise RuntimeError('no /srv/secret/file.txt for janedoe')")
    plugin = doctor.PLUGIN_FOLDER
    monkeypatch.setenv("nnUNet_extTrainer", f"{own}:{plugin}")
    monkeypatch.setenv("nnUNet_raw", str(home / "raw data"))
    monkeypatch.setattr(Path, "home", lambda: Path("/home/janedoe"))
    assert main(["doctor", "--report"]) == 1
    output = capsys.readouterr().out
    for secret in ("Jane", "Doe", "janedoe", "my trainers", "raw data", "secret", str(tmp_path), str(plugin.parent)):
        assert secret not in output
    assert "<nnUNet_raw> does not exist" in output
    assert "<folder of trainers> cannot be imported" in output
    assert "nnunetv2" in output
