"""The line in nnunet_godc.pth, as `site` runs it when an interpreter starts."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HOOK = REPOSITORY / "nnunet_godc.pth"

# What a start does with a site-packages folder, in an interpreter that knows no other.
START = "import os, site, sys; site.addsitedir(sys.argv[1]); print(os.environ.get('nnUNet_extTrainer'))"


def start(site_packages: Path, code: str = START, ext_trainer: str | None = None, arguments: Sequence[str] = ()) -> str:
    """What a fresh interpreter prints that reads `site_packages`; it must neither fail nor complain."""
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    if ext_trainer is not None:
        environment["nnUNet_extTrainer"] = ext_trainer
    command = [sys.executable, "-I", "-S", "-c", code, str(site_packages), *arguments]
    finished = subprocess.run(
        command, env=environment, cwd=site_packages.parent, capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.strip()


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """A site-packages folder that holds the hook and nothing else."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / HOOK.name).write_bytes(HOOK.read_bytes())
    return folder


@pytest.fixture
def plugin_folder(site_packages: Path) -> Path:
    """The plug-in folder of a package in `site_packages`."""
    folder = site_packages / "nnunet_godc" / "_nnunet_plugin"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    return folder


@pytest.mark.parametrize("ext_trainer", [None, ""])
def test_plugin_folder_is_named_where_nothing_is_set(site_packages: Path, plugin_folder: Path, ext_trainer: str | None):
    assert start(site_packages, ext_trainer=ext_trainer) == str(plugin_folder)


def test_what_the_user_has_set_comes_first(site_packages: Path, plugin_folder: Path):
    users = os.pathsep.join(["/one of mine", "/another"])
    assert start(site_packages, ext_trainer=users) == os.pathsep.join([users, str(plugin_folder)])


def test_child_processes_do_not_name_the_folder_again(site_packages: Path, plugin_folder: Path):
    inherited = start(site_packages, ext_trainer="/mine")
    assert start(site_packages, ext_trainer=inherited) == os.pathsep.join(["/mine", str(plugin_folder)])


def test_neither_the_package_nor_anything_else_is_imported(site_packages: Path, plugin_folder: Path):
    code = "import site, sys; before = set(sys.modules); site.addsitedir(sys.argv[1]); print(set(sys.modules) - before)"
    assert plugin_folder.is_dir()
    assert start(site_packages, code) == "set()"


def leave_package_missing(package: Path) -> None:
    assert not package.exists()


def leave_package_without_init(package: Path) -> None:
    (package / "_nnunet_plugin").mkdir(parents=True)


def leave_package_without_plugin_folder(package: Path) -> None:
    package.mkdir()
    (package / "__init__.py").touch()


def leave_empty_folder(package: Path) -> None:
    package.mkdir()


def leave_file_in_place_of_package(package: Path) -> None:
    package.touch()


def leave_module_in_place_of_package(package: Path) -> None:
    package.with_suffix(".py").touch()


@pytest.mark.parametrize("ext_trainer", [None, "/mine"])
@pytest.mark.parametrize(
    "remains",
    [
        leave_package_missing,
        leave_package_without_init,
        leave_package_without_plugin_folder,
        leave_empty_folder,
        leave_file_in_place_of_package,
        leave_module_in_place_of_package,
    ],
)
def test_half_removed_package_changes_nothing(
    site_packages: Path, remains: Callable[[Path], None], ext_trainer: str | None
):
    remains(site_packages / "nnunet_godc")
    assert start(site_packages, ext_trainer=ext_trainer) == str(ext_trainer)


def test_package_that_cannot_be_imported_does_not_stop_the_interpreter(site_packages: Path, plugin_folder: Path):
    (plugin_folder.parent / "__init__.py").write_text("this is no Python\n")
    assert start(site_packages) == str(plugin_folder)


@pytest.mark.parametrize(
    "mishap",
    [
        "sys.path[:0] = [None, 7, b'bytes', '/no/such/folder', '', sys.executable]",
        "sys.meta_path.append(object())",
        "sys.meta_path.append(type('Raises', (), {'find_spec': lambda *_: 1 / 0})())",
        "sys.meta_path.clear()",
        "sys.meta_path = None",
    ],
)
@pytest.mark.parametrize("package_exists", [True, False])
def test_interpreter_with_a_strange_import_system_starts(site_packages: Path, mishap: str, package_exists: bool):
    package = site_packages / "nnunet_godc"
    if package_exists:
        (package / "_nnunet_plugin").mkdir(parents=True)
        (package / "__init__.py").touch()
    code = f"import os, site, sys; {mishap}; site.addsitedir(sys.argv[1]); print(os.environ.get('nnUNet_extTrainer'))"
    assert start(site_packages, code) == str(package / "_nnunet_plugin" if package_exists else None)


def test_package_that_only_a_finder_knows_is_found(site_packages: Path, tmp_path: Path):
    elsewhere = tmp_path / "checkout" / "nnunet_godc"
    (elsewhere / "_nnunet_plugin").mkdir(parents=True)
    (elsewhere / "__init__.py").touch()
    code = (
        "import importlib.util, os, site, sys; "
        "find_spec = lambda name, path, target=None: importlib.util.spec_from_file_location(name, sys.argv[2]); "
        "sys.meta_path.append(type('Finder', (), {'find_spec': staticmethod(find_spec)})); "
        "site.addsitedir(sys.argv[1]); print(os.environ.get('nnUNet_extTrainer'))"
    )
    found = start(site_packages, code, arguments=[str(elsewhere / "__init__.py")])
    assert found == str(elsewhere / "_nnunet_plugin")


def test_hook_costs_less_than_a_millisecond(site_packages: Path, plugin_folder: Path):
    assert plugin_folder.is_dir()
    line = next(line for line in HOOK.read_text().splitlines() if line.startswith("import"))
    # The first call in a fresh interpreter, as at a start: nothing is cached.
    code = (
        "import os, site, sys, time; sys.path.append(sys.argv[1]); begin = time.process_time(); exec(sys.argv[2]); "
        "print(time.process_time() - begin if 'nnUNet_extTrainer' in os.environ else 'the hook did nothing')"
    )
    seconds = [float(start(site_packages, code, arguments=[line])) for _ in range(15)]
    # The least of them: what else the machine does must not count.
    assert min(seconds) < 1e-3


def test_hook_is_one_line_that_every_encoding_reads_alike():
    lines = [line for line in HOOK.read_bytes().decode("ascii").splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    # `site` runs the lines that begin so and takes any other for a folder.
    assert lines[0].startswith("import ")
