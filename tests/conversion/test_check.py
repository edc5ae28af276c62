import contextlib
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_godc.conversion.case import CaseSettings, CaseSource
from nnunet_godc.conversion.check import check_dataset
from nnunet_godc.conversion.collection import Collection, CollectionListing
from nnunet_godc.conversion.dataset import Job, convert_dataset
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion.splits import draw_folds
from nnunet_godc.errors import UserError

RULES = LabelMap(names={1: "liver", 2: "tumour"}, region_of={"liver": (1, 2), "tumour": (2,)})
COLLECTION = Collection(
    title="Test", dataset_name="Test", rules=RULES, tumour=2, label_grid="physical", reference="", licence=""
)
LPS = np.array([[-0.7, 0, 0, 12], [0, -0.8, 0, 9], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
RAS = np.array([[0.7, 0.02, 0, -12], [-0.0175, 0.8, 0, -9], [0, 0, 2.5, -30], [0, 0, 0, 1.0]])
IMAGE, LABEL = "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"


@pytest.fixture(scope="module", params=[False, True], ids=["labels", "regions"])
def converted(tmp_path_factory, request):
    """Two cases to train, one of them with header rounding, one to test with a label and one without."""
    folder = tmp_path_factory.mktemp("Übung")
    cases = []
    for index, name in enumerate("abcd"):
        affine = RAS if name == "b" else LPS
        image = np.random.default_rng(index).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
        label = np.zeros(image.shape, np.float32 if name == "b" else np.uint8)
        label[2:6, 3:6, 2:5] = 1
        label[3:5, 4, 3] = 2 * (name != "a")
        for voxels, kind in ((image, "image"), (label, "label")):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{kind}_{name}.nii.gz")
        label_path = None if name == "d" else folder / f"label_{name}.nii.gz"
        cases.append(CaseSource(name, folder / f"image_{name}.nii.gz", label_path, test=name in "cd"))
    target = folder / "raw" / "Dataset901_Test"
    job = Job(
        collection=COLLECTION,
        found=CollectionListing(tuple(cases)),
        root=folder,
        target=target,
        settings=CaseSettings(rules=RULES, label_grid="physical"),
        regions=request.param,
        workers=0,
        folds=draw_folds({"a": "a", "b": "b"}, seed=0, folds=2),
    )
    assert convert_dataset(job).problems == []
    return target


@pytest.fixture
def dataset(converted, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(converted, tmp_path / converted.name))


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def save(path, voxels, affine=None):
    """Write other voxels under the same header, or under another affine."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine if affine is None else affine, image.header), path)


def voxels_of(path):
    return np.asanyarray(nibabel.load(path).dataobj).copy()


def test_a_converted_dataset_is_in_order(dataset):
    assert check_dataset(dataset) == []


def test_a_missing_file_is_told(dataset):
    (dataset / IMAGE).unlink()
    (dataset / LABEL).unlink()
    problems = check_dataset(dataset)
    assert [problem.split(";")[0] for problem in problems] == [f"b: {IMAGE} is missing", f"b: {LABEL} is missing"]


@pytest.mark.parametrize(
    "name", ["imagesTr/e_0000.nii.gz", "labelsTr/._a.nii.gz", "labelsTs/deeper/x.txt", "imagesVal/e_0000.nii.gz"]
)
def test_a_file_that_nobody_converted_is_told(dataset, name):
    (dataset / name).parent.mkdir(exist_ok=True)
    (dataset / name).write_bytes(b"")
    (dataset / "preview.png").write_bytes(b"lies beside the parts and is none of them")
    assert check_dataset(dataset) == [f"{name} is not of the conversion; move it away"]


def test_other_voxels_in_an_image_are_told(dataset):
    voxels = voxels_of(dataset / IMAGE)
    voxels[0, 0, 0] += 1
    save(dataset / IMAGE, voxels)
    (problem,) = check_dataset(dataset)
    assert problem.startswith(f"b: {IMAGE} changed after the conversion")


@pytest.mark.parametrize("file", [IMAGE, LABEL])
@pytest.mark.parametrize("kept", [0, 1, 12, 60, -9, -1])
def test_truncated_files_are_problems(dataset, file, kept):
    path = dataset / file
    path.write_bytes(path.read_bytes()[:kept])
    problems = check_dataset(dataset)
    assert problems[0].startswith(f"b: {file} changed after the conversion")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compressed=st.booleans(), file=st.sampled_from([IMAGE, LABEL]))
def test_flipped_bits_are_problems(converted, tmp_path, data, compressed, file):
    """In the compressed stream, and in what is compressed: header or voxels."""
    dataset = Path(shutil.copytree(converted, tmp_path / "copy", dirs_exist_ok=True))
    path = dataset / file
    whole = path.read_bytes()
    content = bytearray(whole if compressed else np.frombuffer(nibabel.openers.Opener(path).read(), np.uint8))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    if compressed:
        path.write_bytes(content)
    else:
        with nibabel.openers.Opener(path, "wb") as stream:
            stream.write(bytes(content))
    problems = check_dataset(dataset)
    assert problems[0].startswith(f"b: {file} changed after the conversion")
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"format": 1, "cases": {"a": {}}}'])
def test_a_folder_without_a_whole_record_is_refused(dataset, content):
    (dataset / "conversion.json").unlink()
    if content is not None:
        (dataset / "conversion.json").write_text(content)
    with pytest.raises(UserError, match=r"conversion\.json"):
        check_dataset(dataset)


LEAVES = st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.sampled_from(["", "../x", "a"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_record_is_refused_or_compared(converted, tmp_path, data):
    """One entry somewhere in conversion.json is taken out or replaced by something of another kind."""
    dataset = Path(shutil.copytree(converted, tmp_path / "copy", dirs_exist_ok=True))

    def change(content):
        while True:
            keys = sorted(content) if isinstance(content, dict) else range(len(content))
            key = data.draw(st.sampled_from(list(keys)))
            if isinstance(content[key], dict | list) and content[key] and data.draw(st.integers(0, 4)):
                content = content[key]
            elif data.draw(st.booleans()):
                del content[key]
                return
            else:
                content[key] = data.draw(st.one_of(LEAVES, st.lists(LEAVES), st.dictionaries(st.text(), LEAVES)))
                return

    change_json(dataset / "conversion.json", change)
    with contextlib.suppress(UserError):
        assert all("\n" not in problem for problem in check_dataset(dataset))
