import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import filelock
import numpy as np
import pytest

from nnunet_godc.conversion import dataset as engine
from nnunet_godc.conversion.case import CaseSettings, CaseSource
from nnunet_godc.conversion.collection import Collection, CollectionListing
from nnunet_godc.conversion.dataset import Job, convert_dataset
from nnunet_godc.conversion.labels import LabelMap
from nnunet_godc.conversion_record import also_in_other_datasets, read_record
from nnunet_godc.errors import UserError

COLLECTION = Collection(
    title="test collection",
    dataset_name="Test",
    rules=LabelMap(names={1: "liver", 2: "tumour"}, region_of={"liver": (1, 2), "tumour": (2,)}),
    tumour=2,
    label_grid="image",
    reference="",
    licence="",
)
RAS = np.diag([0.8, 0.8, 2.5, 1.0])
RAS[:3, 3] = (-11.0, -7.0, 30.0)


@pytest.fixture
def job(tmp_path, nifti, ct, mask):
    """Five training cases and a test case; the last training case comes with a test label."""
    root = tmp_path / "source"
    cases = []
    for number in range(6):
        name = f"case_{number}"
        image = nifti(root / f"{name}.nii", ct + np.int16(number), RAS)
        label = None if number == 5 else nifti(root / f"{name}_label.nii", mask, RAS)
        cases.append(CaseSource(name, image, label, test=number == 5))
    return Job(
        collection=COLLECTION,
        found=CollectionListing(tuple(cases)),
        root=root,
        target=tmp_path / "raw" / "Dataset501_Test",
        settings=CaseSettings(COLLECTION.rules, COLLECTION.label_grid),
        workers=0,
    )


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(job, *numbers):
    for number in numbers:
        path = job.found.cases[number].image
        path.write_bytes(path.read_bytes()[:500])


def with_unknown_geometry(job, nifti, ct, *numbers):
    for number in numbers:
        nifti(job.found.cases[number].image, ct, np.eye(4))


def test_a_dataset_has_nnunets_layout(job):
    outcome = convert_dataset(job)
    assert outcome.complete
    assert not outcome.problems
    assert sorted(path.name for path in job.target.iterdir()) == [
        "conversion.json",
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
    ]
    description = json.loads((job.target / "dataset.json").read_text())
    assert description["numTraining"] == 5
    assert description["labels"] == {"background": 0, "liver": 1, "tumour": 2}
    assert description["channel_names"] == {"0": "CT"}
    assert description["file_ending"] == ".nii.gz"
    assert [path.name for path in job.target.parent.iterdir()] == ["Dataset501_Test"]
    assert list(read_record(job.target)["cases"]) == [f"case_{n}" for n in range(6)]


def test_regions_are_nested_and_in_order(job):
    convert_dataset(replace(job, regions=True))
    description = json.loads((job.target / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": [1, 2], "tumour": 2}
    assert description["regions_class_order"] == [1, 2]


def test_one_bad_case_does_not_lose_the_others(job):
    damage(job, 1, 3)
    outcome = convert_dataset(job)
    assert [problem.sentence.partition(":")[0] for problem in outcome.problems] == ["case_1", "case_3"]
    assert json.loads((job.target / "dataset.json").read_text())["numTraining"] == 3
    assert not [name for name in contents(job.target) if "case_1" in name or "case_3" in name]


def test_a_mended_case_joins_the_others_later(job, nifti, ct):
    damage(job, 1)
    convert_dataset(job)
    nifti(job.found.cases[1].image, ct + np.int16(1), RAS)
    outcome = convert_dataset(job)
    assert outcome.reused == 5
    assert json.loads((job.target / "dataset.json").read_text())["numTraining"] == 5
    whole = contents(job.target)
    shutil.rmtree(job.target)
    convert_dataset(job)
    assert contents(job.target) == whole


def test_nothing_is_left_where_no_case_can_be_converted(job):
    damage(job, *range(6))
    with pytest.raises(UserError, match="no case could be converted"):
        convert_dataset(job)
    assert not list(job.target.parent.iterdir())


def test_unknown_voxel_sizes_are_told_together_with_the_ways_on(job, nifti, ct):
    with_unknown_geometry(job, nifti, ct, 1, 2)
    problem, *others = (problem.sentence for problem in convert_dataset(job).problems)
    assert not others
    assert "2 cases of unknown voxel size (case_1, case_2)" in problem
    for way in ("--spacing-csv", "--skip-bad-geometry", "--trust-headers"):
        assert way in problem


def test_cases_of_unknown_voxel_size_are_left_out_as_asked(job, nifti, ct):
    with_unknown_geometry(job, nifti, ct, 1)
    outcome = convert_dataset(replace(job, skip_bad_geometry=True))
    assert (outcome.skipped, outcome.problems) == (["case_1"], [])
    assert read_record(job.target)["left_out"] == ["case_1"]


def test_spacings_given_later_change_no_other_case(job, nifti, ct):
    with_unknown_geometry(job, nifti, ct, 1)
    convert_dataset(job)
    settings = replace(job.settings, spacings={"case_1": (0.7, 0.7, 2.0)})
    outcome = convert_dataset(replace(job, settings=settings))
    assert outcome.reused == 5
    assert not outcome.problems


def test_worker_processes_write_the_same_bytes(job):
    convert_dataset(job)
    alone = contents(job.target)
    shutil.rmtree(job.target)
    convert_dataset(replace(job, workers=2))
    assert contents(job.target) == alone


@pytest.mark.parametrize("reached", range(7))
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(job, reached):
    convert_dataset(job)
    uninterrupted = contents(job.target)
    shutil.rmtree(job.target)

    def interrupt(name):
        interrupt.calls += 1
        if interrupt.calls > reached:
            raise KeyboardInterrupt

    interrupt.calls = 0
    if reached < 6:
        with pytest.raises(KeyboardInterrupt):
            convert_dataset(job, progress=interrupt)
        assert not job.target.exists()
    assert convert_dataset(job).reused == (reached + 1 if reached < 6 else 0)
    assert contents(job.target) == uninterrupted


@pytest.mark.parametrize("damage_of", ["image", "label", "record"])
def test_an_interrupted_run_trusts_no_damaged_leftover(job, damage_of):
    convert_dataset(job)
    uninterrupted = contents(job.target)
    shutil.rmtree(job.target)

    def interrupt(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_dataset(job, progress=interrupt)
    unfinished = job.target.with_name(f".{job.target.name}.unfinished")
    path = {
        "image": unfinished / "imagesTr" / "case_0_0000.nii.gz",
        "label": unfinished / "labelsTr" / "case_0.nii.gz",
        "record": unfinished / "records" / "case_0.json",
    }[damage_of]
    path.write_bytes(path.read_bytes()[:50])
    (unfinished / "imagesTr" / ".case_9_0000.nii.gz.part").write_bytes(b"left behind")
    assert convert_dataset(job).reused == 0
    assert contents(job.target) == uninterrupted


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(job, tmp_path):
    convert_dataset(job)
    uninterrupted = contents(job.target)
    shutil.rmtree(job.target)
    code = (
        "import pickle, sys, time\n"
        "from nnunet_godc.conversion.dataset import convert_dataset\n"
        "job = pickle.load(open(sys.argv[1], 'rb'))\n"
        "def slow(name):\n"
        "    print(name, flush=True)\n"
        "    if name == 'case_2': time.sleep(60)\n"
        "convert_dataset(job, progress=slow)\n"
    )
    import pickle

    (tmp_path / "job").write_bytes(pickle.dumps(replace(job, workers=1)))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "job")], stdout=subprocess.PIPE, text=True
    ) as run:
        while run.stdout.readline().strip() != "case_2":
            assert run.poll() is None
        run.send_signal(signal.SIGKILL)
    assert not job.target.exists()
    # The worker process ends when it notices that its parent is gone.
    deadline = time.monotonic() + 30
    while True:
        try:
            outcome = convert_dataset(job)
            break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert outcome.reused >= 3
    assert contents(job.target) == uninterrupted


def test_a_second_run_into_one_target_is_refused(job):
    unfinished = job.target.with_name(f".{job.target.name}.unfinished")
    unfinished.mkdir(parents=True)
    with filelock.FileLock(unfinished / "lock"), pytest.raises(UserError, match="another conversion is writing"):
        convert_dataset(job)
    assert convert_dataset(job).complete


def test_what_was_converted_already_is_not_converted_again(job):
    convert_dataset(job)
    before = {path: path.stat().st_ino for path in job.target.rglob("*.nii.gz")}
    outcome = convert_dataset(job)
    assert outcome.reused == 6
    assert {path: path.stat().st_ino for path in job.target.rglob("*.nii.gz")} == before


def test_a_foreign_dataset_is_left_alone(job):
    job.target.mkdir(parents=True)
    (job.target / "dataset.json").write_text("precious")
    with pytest.raises(UserError, match="was not written by nnunet-godc convert; choose another number with -d"):
        convert_dataset(job)
    assert contents(job.target.parent) == {"Dataset501_Test/dataset.json": b"precious"}
    assert convert_dataset(replace(job, overwrite=True)).complete
    assert "precious" not in (job.target / "dataset.json").read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda job: replace(job, regions=True), "regions"),
        (lambda job: replace(job, settings=replace(job.settings, orientation="RAS")), "orientation"),
    ],
)
def test_a_dataset_of_other_options_is_replaced_only_on_demand(job, change, named):
    convert_dataset(job)
    before = contents(job.target)
    with pytest.raises(UserError, match=rf"converted with other options \({named}\)"):
        convert_dataset(change(job))
    assert contents(job.target) == before
    assert convert_dataset(replace(change(job), overwrite=True)).complete
    assert contents(job.target) != before


def test_a_changed_source_replaces_nothing_unasked(job, nifti, ct):
    convert_dataset(job)
    before = contents(job.target)
    nifti(job.found.cases[2].image, ct + np.int16(77), RAS)
    outcome = convert_dataset(job)
    assert not outcome.complete
    assert "case_2: its source or options changed" in outcome.problems[0].sentence
    assert contents(job.target) == before
    assert convert_dataset(replace(job, overwrite=True)).reused == 5
    assert contents(job.target) != before


def test_a_source_that_lost_cases_replaces_nothing_unasked(job):
    convert_dataset(job)
    before = contents(job.target)
    smaller = replace(job, found=CollectionListing(job.found.cases[1:]))
    with pytest.raises(UserError, match="holds 1 cases that the source does not have, such as case_0"):
        convert_dataset(smaller)
    assert contents(job.target) == before
    convert_dataset(replace(smaller, overwrite=True))
    assert "case_0" not in read_record(job.target)["cases"]


def test_a_replacement_that_was_cut_short_is_undone(job):
    convert_dataset(job)
    before = contents(job.target)
    job.target.rename(job.target.with_name(f".{job.target.name}.replaced"))
    convert_dataset(job)
    assert contents(job.target) == before
    assert [path.name for path in job.target.parent.iterdir()] == [job.target.name]


def test_a_full_disk_ends_with_one_sentence_and_the_run_can_go_on(job, monkeypatch):
    convert_dataset(job)
    uninterrupted = contents(job.target)
    shutil.rmtree(job.target)
    real = engine.convert_case

    def full(source, *arguments):
        if source.name == "case_3":
            raise OSError(28, "No space left on device")
        return real(source, *arguments)

    monkeypatch.setattr(engine, "convert_case", full)
    with pytest.raises(UserError, match="No space left on device; free some space and run the same command again"):
        convert_dataset(job)
    assert not job.target.exists()
    monkeypatch.undo()
    assert convert_dataset(job).reused == 3
    assert contents(job.target) == uninterrupted


def test_a_file_that_cannot_grow_leaves_nothing_that_looks_whole(job):
    """The system itself cuts the writing off: no file may become larger than 1000 bytes."""
    code = (
        "import pickle, resource, signal, sys\n"
        "from nnunet_godc.conversion.dataset import convert_dataset\n"
        "from nnunet_godc.errors import UserError\n"
        "job = pickle.load(sys.stdin.buffer)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    convert_dataset(job)\n"
        "except UserError as error:\n"
        "    sys.exit(str(error))\n"
    )
    import pickle

    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(job), capture_output=True)
    assert run.returncode == 1
    assert b"File too large; free some space" in run.stderr
    assert not [path for path in job.target.parent.rglob("*.nii.gz") if not path.name.startswith(".")]


def test_a_target_that_cannot_be_written_is_told(job, tmp_path):
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(UserError, match="cannot write to"):
        convert_dataset(job)


def test_a_worker_that_dies_costs_its_case_alone(job, monkeypatch, tmp_path):
    """As when the system ends a process for want of memory."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from nnunet_godc.conversion import dataset\n"
        "real = dataset.convert_case\n"
        "def deadly(source, *arguments):\n"
        "    if source.name == 'case_2':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(source, *arguments)\n"
        "dataset.convert_case = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = convert_dataset(replace(job, workers=2))
    assert len(outcome.problems) == 1
    assert "case_2: its worker process was ended from outside" in outcome.problems[0].sentence
    assert len(outcome.records) == 5


def test_a_defect_of_ours_ends_in_a_traceback_and_keeps_what_was_converted(job, monkeypatch):
    real = engine.convert_case

    def broken(source, *arguments):
        if source.name == "case_2":
            raise ZeroDivisionError("MUELLER^HANS")
        return real(source, *arguments)

    monkeypatch.setattr(engine, "convert_case", broken)
    with pytest.raises(ZeroDivisionError):
        convert_dataset(job)
    assert not job.target.exists()
    monkeypatch.setattr(engine, "convert_case", real)
    outcome = convert_dataset(job)
    assert outcome.complete
    assert outcome.reused == 2


def test_the_source_is_only_read(job):
    for path in job.root.rglob("*"):
        path.chmod(0o400)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in job.root.iterdir()}
    job.root.chmod(0o500)
    convert_dataset(job)
    job.root.chmod(0o700)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in job.root.iterdir()} == before


def test_folds_hold_the_cases_that_came_through(job):
    damage(job, 1)
    folds = [{"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]}]
    convert_dataset(replace(job, folds=folds))
    assert json.loads((job.target / "splits_final.json").read_text()) == [
        {"train": ["case_0", "case_2"], "val": ["case_3", "case_4"]}
    ]


def test_scans_of_another_dataset_are_found_and_left_out(job, tmp_path):
    convert_dataset(replace(job, found=CollectionListing(job.found.cases[:2])))
    fingerprints = frozenset(record["image"]["fingerprint"] for record in read_record(job.target)["cases"].values())
    other = replace(job, target=job.target.with_name("Dataset502_Other"))
    outcome = convert_dataset(other)
    assert also_in_other_datasets(outcome.records, other.target) == {"Dataset501_Test": ["case_0", "case_1"]}
    outcome = convert_dataset(replace(other, leave_out=fingerprints, overwrite=True))
    assert outcome.skipped == ["case_0", "case_1"]
    assert sorted(outcome.records) == [f"case_{n}" for n in range(2, 6)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99, "cases": {}}'])
def test_a_damaged_record_is_told(job, content):
    convert_dataset(job)
    (job.target / "conversion.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged|another version"):
        convert_dataset(job)
    assert convert_dataset(replace(job, overwrite=True)).complete


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "ä", "a b", "case..1"])
def test_names_that_leave_the_folder_are_refused(job, name):
    cases = (replace(job.found.cases[0], name=name),)
    with pytest.raises(UserError, match="cannot name a case"):
        convert_dataset(replace(job, found=CollectionListing(cases)))
    assert not job.target.parent.exists()


def test_names_that_some_systems_take_for_one_are_refused(job):
    cases = (job.found.cases[0], replace(job.found.cases[1], name="CASE_0"))
    with pytest.raises(UserError, match="several cases would be called"):
        convert_dataset(replace(job, found=CollectionListing(cases)))


def test_hard_links_of_an_earlier_run_are_not_written_through(job):
    """A dataset that is replaced shares files with the new one; the old link's content must not change."""
    convert_dataset(job)
    kept = job.target.with_name("kept.nii.gz")
    os.link(job.target / "imagesTr" / "case_0_0000.nii.gz", kept)
    before = kept.read_bytes()
    settings = replace(job.settings, orientation="RAS")
    convert_dataset(replace(job, settings=settings, overwrite=True))
    assert kept.read_bytes() == before
