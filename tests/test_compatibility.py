from pathlib import Path

import pytest

from nnunet_godc.compatibility import SUPPORTED, nnunet_problem, require_supported_nnunet
from nnunet_godc.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def pretend_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts the metadata of an nnU-Net of any version before that of the real one."""

    def install(version: str) -> None:
        metadata = tmp_path / f"nnunetv2-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: nnunetv2\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_installed_nnunet_is_supported():
    assert nnunet_problem() is None
    require_supported_nnunet()


@pytest.mark.parametrize("version", ["2.8", "2.8.1", "2.9.0.dev3", "2.10", "2.99.1"])
def test_versions_in_the_range_are_supported(pretend_nnunet, version: str):
    pretend_nnunet(version)
    assert nnunet_problem() is None


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("1.7.1", "too old"), ("2", "too old"), ("2.7.99", "too old"), ("3.0a1", "too new"), ("10.0", "too new")],
)
def test_other_versions_are_refused_in_one_sentence(pretend_nnunet, version: str, verdict: str):
    pretend_nnunet(version)
    with pytest.raises(UserError) as caught:
        require_supported_nnunet()
    assert str(caught.value) == (
        f"nnU-Net {version} is {verdict}, nnunet-godc needs {SUPPORTED}: run `pip install '{SUPPORTED}'`."
    )


def test_unreadable_version_is_refused(pretend_nnunet):
    pretend_nnunet("unknown")
    assert "'unknown' cannot be read" in str(nnunet_problem())


def test_missing_nnunet_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert nnunet_problem() == f"nnU-Net is not installed in this Python: run `pip install '{SUPPORTED}'`."


def test_range_is_the_one_that_the_package_requires():
    assert f'"{SUPPORTED}"' in (REPOSITORY / "pyproject.toml").read_text()
