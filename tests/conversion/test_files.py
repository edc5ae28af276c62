import pytest

from nnunet_godc.conversion.files import check_source_folder, visible_files
from nnunet_godc.errors import UserError


def test_what_systems_leave_behind_is_not_seen(tmp_path):
    for name in ("a.nii", "._a.nii", ".DS_Store", "__MACOSX/b.nii", "sub/c.nii", "sub/Thumbs.db", ".hidden/d.nii"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in visible_files(tmp_path)] == ["a.nii", "sub/c.nii"]


def test_links_are_followed_once(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.nii").write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(root)
    (root / "b.nii").symlink_to(elsewhere / "a.nii")
    assert [path.relative_to(root).as_posix() for path in visible_files(root)] == ["b.nii", "link/a.nii"]


@pytest.mark.parametrize("name", ["LiTS.zip", "batch.tar.gz", "x.7z"])
def test_archives_are_not_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="unpack"):
        check_source_folder(tmp_path / name)
    with pytest.raises(UserError, match="nothing but archives"):
        check_source_folder(tmp_path)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check_source_folder(tmp_path / "none")
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match="not a folder"):
        check_source_folder(tmp_path / "a.nii.gz")
    check_source_folder(tmp_path)
