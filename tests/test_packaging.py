"""What an installation holds, what nnU-Net finds through it, and what it leaves: pip and uv, regular and editable."""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nnunet_godc import trainers

REPOSITORY = Path(__file__).resolve().parent.parent
INSTALLATIONS = [(tool, mode) for tool in ("pip", "uv") for mode in ("regular", "editable")]
USERS_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMine(nnUNetTrainer):
    pass
"""
LOOK_UP = """
import contextlib, io, json, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

found = {}
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            found[name] = recursive_find_trainer_class_by_name(name).__module__
        except RuntimeError:
            found[name] = None
print(json.dumps(found))
"""


def run(*command: str | Path, cwd: Path, ext_trainer: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `command` with nothing set that could help or hinder discovery but `ext_trainer`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("nnUNet_extTrainer", "PYTHONPATH")}
    if ext_trainer is not None:
        environment["nnUNet_extTrainer"] = str(ext_trainer)
    finished = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def look_up(python: Path | str, names: Sequence[str], cwd: Path, ext_trainer: Path | None = None) -> dict[str, str]:
    """The module of each trainer as nnU-Net's own search finds it."""
    finished = run(python, "-c", LOOK_UP, *names, cwd=cwd, ext_trainer=ext_trainer)
    found: dict[str, str] = json.loads(finished.stdout)
    return found


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source") / "nnunet-godc"
    folder.mkdir()
    for name in ("nnunet_godc", "trainers", "dataset_conversion"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "nnunet_godc.pth", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    [path] = folder.glob("*.whl")
    return path


def install(tool: str, mode: str, venv: Path, source: Path, wheel: Path) -> None:
    """Makes `venv`, whose Python sees this one's packages too, and installs into it without network."""
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=source)
    # The packages in a folder that a .pth file names are seen, its own .pth files are not: only the new hook runs.
    folders = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site_packages(venv) / "packages_of_the_tests.pth").write_text("\n".join(folders) + "\n")
    what = ["--no-build-isolation", "--editable", source] if mode == "editable" else [wheel]
    if tool == "pip":
        command = [sys.executable, "-m", "pip", "--python", python_of(venv), "install", "--ignore-installed"]
    else:
        command = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--python", python_of(venv)]
    run(*command, "--quiet", "--no-deps", *what, cwd=source)


def uninstall(tool: str, venv: Path) -> None:
    if tool == "pip":
        command = [sys.executable, "-m", "pip", "--python", python_of(venv), "uninstall", "--yes", "nnunet-godc"]
    else:
        command = [sys.executable, "-m", "uv", "pip", "uninstall", "--python", python_of(venv), "nnunet-godc"]
    run(*command, cwd=venv)


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def site_packages(venv: Path) -> Path:
    [folder] = venv.glob("lib/python3*/site-packages")
    return folder


@pytest.fixture(scope="session", params=INSTALLATIONS, ids="-".join)
def installation(request: pytest.FixtureRequest, source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory):
    """(the virtual environment, the folder that holds the package's files, the tool that has installed it)"""
    tool, mode = request.param
    venv = tmp_path_factory.mktemp(f"{tool}-{mode}") / "venv"
    install(tool, mode, venv, source, wheel)
    return venv, source if mode == "editable" else site_packages(venv), tool


def test_wheel_holds_the_hook_and_no_top_level_name_but_its_own(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "nnunet_godc",
        "nnunet_godc.pth",
        f"nnunet_godc-{importlib.metadata.version('nnunet-godc')}.dist-info",
    }
    for needed in ("py.typed", "trainers/__init__.py", "_nnunet_plugin/nnunet_godc_trainers.py"):
        assert f"nnunet_godc/{needed}" in names


def test_wheel_holds_every_module_of_the_repository(source: Path, wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(source).as_posix() for path in source.glob("nnunet_godc/**/*.py")}
    for top in ("trainers", "dataset_conversion"):
        modules |= {f"nnunet_godc/{path.relative_to(source).as_posix()}" for path in source.glob(f"{top}/**/*.py")}
    assert modules - names == set()


def test_wheel_from_the_source_archive_is_the_same(source: Path, wheel: Path, tmp_path: Path):
    build = "from setuptools import build_meta; import sys; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", tmp_path, cwd=source)
    [archive] = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    run(sys.executable, "-c", build, "build_wheel", tmp_path, cwd=unpacked)
    assert (tmp_path / wheel.name).exists()
    assert sorted(zipfile.ZipFile(tmp_path / wheel.name).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_hook_names_the_plugin_folder_and_keeps_what_the_user_has_set(installation, tmp_path: Path):
    venv, home, _ = installation
    ask = "import os; print(os.environ['nnUNet_extTrainer'])"
    plugin_folder = home / "nnunet_godc" / "_nnunet_plugin"
    assert run(python_of(venv), "-c", ask, cwd=tmp_path).stdout.strip() == str(plugin_folder)
    beside_the_users = run(python_of(venv), "-c", ask, cwd=tmp_path, ext_trainer=tmp_path).stdout.strip()
    assert beside_the_users == os.pathsep.join([str(tmp_path), str(plugin_folder)])


def test_trainers_and_converters_are_part_of_the_package_alone(installation, tmp_path: Path):
    venv, home, _ = installation
    names = ["nnunet_godc.trainers", "nnunet_godc.dataset_conversion", "trainers", "dataset_conversion"]
    ask = (
        "import importlib.util, json, sys; "
        "specs = [importlib.util.find_spec(name) for name in sys.argv[1:]]; "
        "print(json.dumps([spec and spec.origin for spec in specs]))"
    )
    origins = json.loads(run(python_of(venv), "-c", ask, *names, cwd=tmp_path).stdout)
    inside = home / "nnunet_godc" if home == site_packages(venv) else home
    assert origins == [str(inside / name / "__init__.py") for name in ("trainers", "dataset_conversion")] + [None, None]


def test_command_is_installed(installation, tmp_path: Path):
    venv, _, _ = installation
    version = importlib.metadata.version("nnunet-godc")
    assert run(venv / "bin" / "nnunet-godc", "--version", cwd=tmp_path).stdout == f"nnunet-godc {version}\n"


def test_uninstalling_leaves_nothing_behind(installation, tmp_path: Path):
    venv, _, tool = installation
    copy = tmp_path / "venv"
    shutil.copytree(venv, copy, symlinks=True)
    assert (site_packages(copy) / "nnunet_godc.pth").exists()
    uninstall(tool, copy)
    assert [path.name for path in site_packages(copy).iterdir() if "nnunet" in path.name] == []
    assert not (copy / "bin" / "nnunet-godc").exists()
    ask = "import os; print(os.environ.get('nnUNet_extTrainer'))"
    assert run(python_of(copy), "-c", ask, cwd=tmp_path).stdout == "None\n"


@pytest.mark.slow
def test_nnunet_finds_our_trainers_and_the_users_in_every_installation(installation, tmp_path: Path):
    venv, _, _ = installation
    (tmp_path / "mine.py").write_text(USERS_TRAINER)
    ours = {"nnUNetTrainerGODCLFAM": trainers.nnUNetTrainerGODCLFAM.__module__}
    assert look_up(python_of(venv), list(ours), tmp_path) == ours
    with_the_users = {**ours, "nnUNetTrainerMine": "mine"}
    assert look_up(python_of(venv), list(with_the_users), tmp_path, ext_trainer=tmp_path) == with_the_users


def test_nnunet_finds_all_our_trainers_in_this_installation_and_suggests_them(tmp_path: Path):
    (tmp_path / "mine.py").write_text(USERS_TRAINER)
    ours = {name: getattr(trainers, name).__module__ for name in trainers.__all__}
    misspelt = ["nnUNetTrainerGODCLAFM", "nnUNetTrainerGODCLAFM", "nnUNetTrainer_100epoch"]
    finished = run(
        sys.executable, "-c", LOOK_UP, *ours, "nnUNetTrainerMine", *misspelt, cwd=tmp_path, ext_trainer=tmp_path
    )
    assert json.loads(finished.stdout) == {**ours, "nnUNetTrainerMine": "mine", **dict.fromkeys(misspelt)}
    assert [line for line in finished.stderr.splitlines() if "nnunet-godc" in line] == [
        "nnunet-godc knows no trainer called nnUNetTrainerGODCLAFM; did you mean nnUNetTrainerGODCLFAM?",
        "nnunet-godc knows no trainer called nnUNetTrainer_100epoch; did you mean nnUNetTrainer_100epochs?",
    ]


def test_python_without_the_package_passes_over_an_inherited_plugin_folder(tmp_path: Path):
    code = (
        "import sys\nsys.path.append(sys.argv[1])\n"
        "try:\n    import nnunet_godc_trainers\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    plugin_folder = REPOSITORY / "nnunet_godc" / "_nnunet_plugin"
    # nnU-Net's search skips a module that is missing by its own name, and fails for any other.
    assert run(sys.executable, "-I", "-S", "-c", code, plugin_folder, cwd=tmp_path).stdout == "nnunet_godc_trainers\n"


def test_trainers_refuse_an_unsupported_nnunet_in_one_sentence(tmp_path: Path):
    metadata = tmp_path / "nnunetv2-2.5.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.5.1\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nnunet_godc.trainers"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == (
        "nnunet_godc.errors.UserError: nnU-Net 2.5.1 is too old, nnunet-godc needs nnunetv2>=2.8,<3: "
        "run `pip install 'nnunetv2>=2.8,<3'`."
    )


def test_what_is_imported_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    imported = set()
    for folder in ("nnunet_godc", "trainers", "dataset_conversion"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    imported.add(str(node.module).partition(".")[0])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [entry for name, entries in project["optional-dependencies"].items() if name != "dev" for entry in entries]
    declared = {canonicalize_name(Requirement(entry).name) for entry in (*project["dependencies"], *extras)}
    declared |= {"llvmlite", "pydantic-core", "triton"}  # parts of what is declared, which needs their exact versions
    of_modules = importlib.metadata.packages_distributions()
    foreign = imported - sys.stdlib_module_names - {"nnunet_godc", "trainers", "dataset_conversion"}
    assert not {
        module for module in foreign if declared.isdisjoint(map(canonicalize_name, of_modules.get(module, [module])))
    }
