from pathlib import Path

import pytest

from nnunet_godc.atomic_write import atomic_write_all


@pytest.fixture
def paths(tmp_path):
    """Two files that are there, and between them one that is not."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[0].write_text("old a")
    paths[2].write_text("old c")
    return paths


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def write_new(paths, failing=""):
    with atomic_write_all(paths) as temporaries:
        for path, temporary in zip(paths, temporaries, strict=True):
            if path.name == failing:
                raise OSError("disk full")
            temporary.write_text(f"new {path.name}")


def test_files_that_belong_together_are_replaced_together(paths, tmp_path):
    with atomic_write_all(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert contents(tmp_path).items() >= {"a": "old a", "c": "old c"}.items()
        assert not paths[1].exists()
    assert contents(tmp_path) == {"a": "new", "b": "new", "c": "new"}


def test_what_an_interrupted_run_left_is_no_harm(paths, tmp_path):
    for name in (".a.part", ".b.former"):
        (tmp_path / name).write_text("left")
    write_new(paths)
    assert contents(tmp_path) == {"a": "new a", "b": "new b", "c": "new c"}


def test_an_error_while_they_are_written_leaves_all_as_they_were(paths, tmp_path):
    with pytest.raises(OSError, match="disk full"):
        write_new(paths, failing="b")
    assert contents(tmp_path) == {"a": "old a", "c": "old c"}


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_that_cannot_be_replaced_brings_the_others_back(paths, tmp_path, name, monkeypatch):
    replace = Path.replace

    def replace_others(path, target):
        if path.name == f".{name}.part":
            raise PermissionError("open in another program")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_others)
    with pytest.raises(PermissionError, match="open in another program"):
        write_new(paths)
    assert contents(tmp_path) == {"a": "old a", "c": "old c"}


def test_a_folder_in_the_place_of_a_file_is_left_alone(paths, tmp_path):
    paths[1].mkdir()
    with pytest.raises(OSError, match="b"):
        write_new(paths)
    assert contents(tmp_path) == {"a": "old a", "c": "old c"}
    assert paths[1].is_dir()
