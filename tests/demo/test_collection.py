from argparse import Namespace

import nibabel
import numpy as np
import pytest

from nnunet_godc.dataset_conversion.Dataset501_LiTS import find_cases
from nnunet_godc.demo.collection import ORIENTATIONS, phantom_cases, write_phantom_collection


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "collection"
    write_phantom_collection(folder, training=5, test=2)
    return folder


def test_the_converter_of_lits_finds_every_case_with_its_label(collection):
    found = find_cases(collection, Namespace())
    assert not found.problems
    assert sum(case.test for case in found.cases) == 2
    assert sum(not case.test for case in found.cases) == 5
    assert all(case.label is not None for case in found.cases)
    assert len({case.image.parent for case in found.cases}) == 3


def test_image_and_label_share_their_geometry(collection):
    for label_path in sorted(collection.rglob("*segmentation*.nii")):
        image = nibabel.load(label_path.with_name(label_path.name.replace("segmentation", "volume")))
        label = nibabel.load(label_path)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_orientations_and_spacings_vary_and_are_anisotropic(collection):
    images = [nibabel.load(path) for path in sorted(collection.rglob("*volume*.nii"))]
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
    folder = tmp_path / "collection"
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_phantom_collection(folder, training=5, test=0)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_godc.demo.collection._write_volume", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_phantom_collection(tmp_path / "collection", training=5, test=0)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("training", "test"), [(4, 1), (5, -1)])
def test_too_few_cases_are_refused(tmp_path, training, test):
    with pytest.raises(ValueError, match="at least 5 training"):
        write_phantom_collection(tmp_path / "new", training=training, test=test)
