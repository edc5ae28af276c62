import json
import os
import subprocess

import nibabel
import numpy as np
import pytest

from nnunet_godc.demo.commands import find_command
from nnunet_godc.demo.dataset import ORIENTATIONS, phantom_cases, write_phantom_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "Dataset500_Phantom"
    write_phantom_dataset(folder, training=5, test=2)
    return folder


def test_layout_is_that_of_a_raw_nnunet_dataset(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert description["channel_names"] == {"0": "CT"}
    assert description["numTraining"] == 5
    for part, count in (("Tr", 5), ("Ts", 2)):
        labels = sorted(path.name for path in (dataset / f"labels{part}").iterdir())
        images = sorted(path.name for path in (dataset / f"images{part}").iterdir())
        assert len(labels) == count
        assert images == [name.replace(".nii.gz", "_0000.nii.gz") for name in labels]


def test_image_and_label_share_their_geometry(dataset):
    for label_path in sorted(dataset.glob("labels*/*.nii.gz")):
        part = label_path.parent.name[-2:]
        image = nibabel.load(dataset / f"images{part}" / label_path.name.replace(".nii.gz", "_0000.nii.gz"))
        label = nibabel.load(label_path)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_orientations_and_spacings_vary_and_are_anisotropic(dataset):
    images = [nibabel.load(path) for path in sorted(dataset.glob("images*/*.nii.gz"))]
    assert {"".join(nibabel.aff2axcodes(image.affine)) for image in images} == set(ORIENTATIONS)
    spacings = {tuple(round(float(step), 2) for step in image.header.get_zooms()) for image in images}
    assert len(spacings) == len(images)
    assert all(x == y and z > 1.1 * x for x, y, z in spacings)


def test_cases_do_not_depend_on_how_many_are_asked_for():
    assert list(phantom_cases(3, seed=0)) == list(phantom_cases(7, seed=0))[:3]
    assert list(phantom_cases(3, seed=0)) != list(phantom_cases(3, seed=1))


def test_one_training_case_has_no_tumour_and_the_others_have_lesions_of_all_sizes():
    first, *others = phantom_cases(15, seed=0)
    assert first.lesion_radii == ()
    assert all(max(case.lesion_radii) > 4 * min(case.lesion_radii) for case in others)


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "Dataset500_Phantom"
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_phantom_dataset(folder, training=5, test=0)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_godc.demo.dataset._write_dataset_json", interrupt)
    monkeypatch.setattr("nnunet_godc.demo.dataset.phantom_cases", lambda *_, **__: [])
    with pytest.raises(KeyboardInterrupt):
        write_phantom_dataset(tmp_path / "Dataset500_Phantom", training=5, test=0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("training", "test"), [(4, 1), (5, -1)])
def test_too_few_cases_are_refused(tmp_path, training, test):
    with pytest.raises(ValueError, match="at least 5 training"):
        write_phantom_dataset(tmp_path / "new", training=training, test=test)


@pytest.mark.slow
def test_the_integrity_check_of_nnunet_passes(dataset, tmp_path):
    finished = subprocess.run(
        [
            find_command("nnUNetv2_extract_fingerprint"),
            *("-d", "500", "-np", "1", "--verify_dataset_integrity"),
        ],
        env={**os.environ, "nnUNet_raw": str(dataset.parent), "nnUNet_preprocessed": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "verify_dataset_integrity Done" in finished.stdout
    assert "mismatch" not in finished.stdout
