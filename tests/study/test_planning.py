"""From a study to its jobs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from nnunet_godc.study.definition import Study, StudyConfig
from nnunet_godc.study.jobs import Job, dependents, in_order
from nnunet_godc.study.planning import jobs_of

FOLDER = Path("/study")
DATASET = "Dataset901_Tiny"


def study(**keys: object) -> Study:
    definition = StudyConfig.model_validate({"datasets": [901], "trainers": ["nnUNetTrainer"], "folds": [0], **keys})
    folders = {"raw": "/raw", "preprocessed": "/preprocessed", "results": "/results"}
    return Study(name="s", datasets=[DATASET], definition=definition, **folders)


def jobs(**keys: object) -> dict[str, Job]:
    return {job.id.replace(f"{DATASET}.", ""): job for job in jobs_of(study(**keys), FOLDER)}


def needs(job: Job) -> set[str]:
    return {name.replace(f"{DATASET}.", "") for name in job.depends_on}


def test_the_smallest_study_plans_preprocesses_trains_and_evaluates() -> None:
    found = jobs()
    model = "nnUNetTrainer.nnUNetPlans.3d_fullres"
    assert list(found) == [
        "plan.nnUNetPlans",
        "preprocess.nnUNetPlans.3d_fullres",
        f"train.{model}.fold0",
        f"evaluate.{DATASET}",
    ]
    assert needs(found["preprocess.nnUNetPlans.3d_fullres"]) == {"plan.nnUNetPlans"}
    assert needs(found[f"train.{model}.fold0"]) == {"preprocess.nnUNetPlans.3d_fullres"}
    assert needs(found[f"evaluate.{DATASET}"]) == {f"train.{model}.fold0"}


def test_a_training_is_nnunets_own_command() -> None:
    training = jobs()["train.nnUNetTrainer.nnUNetPlans.3d_fullres.fold0"]
    command = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans -device cuda"
    assert " ".join(training.command) == command
    fold = f"/results/{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"
    assert training.expected == (f"{fold}/checkpoint_final.pth", f"{fold}/validation/summary.json")
    assert [(resume.file, resume.arguments) for resume in training.resume] == [
        (f"{fold}/checkpoint_final.pth", ("--val",)),
        (f"{fold}/checkpoint_latest.pth", ("--c",)),
        (f"{fold}/checkpoint_best.pth", ("--c",)),
    ]
    assert training.environment["nnUNet_results"] == "/results"
    about = ("dataset", "plans", "configuration", "trainer", "fold", "seed")
    assert [getattr(training, name) for name in about] == [
        DATASET,
        "nnUNetPlans",
        "3d_fullres",
        "nnUNetTrainer",
        "0",
        None,
    ]


def test_jobs_that_write_to_the_same_folder_of_nnunet_share_a_lock() -> None:
    of_dataset, model = f"/preprocessed/{DATASET}", f"/results/{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres"
    places = {"plan": of_dataset, "preprocess": of_dataset, "train": f"{model}/fold_0", "evaluate": None}
    for name, job in jobs().items():
        place = places[name.partition(".")[0]]
        assert job.lock == (f"{place}/.nnunet-godc.lock" if place else "")


def test_every_job_survives_being_written_down_now_or_by_version_0_1_0() -> None:
    for job in jobs_of(study(plans=["nnUNetPlans", "nnUNetResEncUNetMPlans"], seeds=[3], predict={}), FOLDER):
        assert Job.from_json(job.to_json()) == job
        former = job.to_json()
        former["adopted"] = former.pop("skip_if_output_exists")
        assert Job.from_json(former) == job


def test_jobs_stand_after_what_they_depend_on() -> None:
    configurations = ["3d_cascade_fullres", "3d_lowres", "2d"]
    every = jobs_of(study(configurations=configurations, folds=[0, 1, 2, 3, 4], predict={}, ensemble=True), FOLDER)
    assert {name for job in every for name in job.depends_on} <= {job.id for job in every}
    done: set[str] = set()
    for job in in_order(every):
        assert done.issuperset(job.depends_on)
        done.add(job.id)


def test_plans_of_one_dataset_are_made_one_after_the_other() -> None:
    # they read one fingerprint and share folders of data, which nnU-Net removes before it preprocesses
    found = jobs(plans=["nnUNetPlans", "nnUNetResEncUNetMPlans"], configurations=["2d", "3d_fullres"])
    assert needs(found["plan.nnUNetResEncUNetMPlans"]) == {"plan.nnUNetPlans"}
    preprocessings = [job for job in found.values() if job.kind == "preprocess"]
    for before, after in pairwise(preprocessings):
        assert before.id in after.depends_on
    assert "-pl nnUNetPlannerResEncM" in " ".join(found["plan.nnUNetResEncUNetMPlans"].command)


def test_low_resolution_is_preprocessed_last_and_trains_with_full_resolution_at_hand() -> None:
    # its validation predicts for the cascade, which is planned wherever it is; small images have none
    found = jobs(plans=["nnUNetPlans", "nnUNetResEncUNetMPlans"], configurations=["3d_lowres", "2d"])
    preprocessings = [name.rpartition(".")[2] for name, job in found.items() if job.kind == "preprocess"]
    assert preprocessings == ["3d_fullres", "3d_fullres", "2d", "2d", "3d_lowres", "3d_lowres"]
    assert needs(found["train.nnUNetTrainer.nnUNetPlans.3d_lowres.fold0"]) == {
        "preprocess.nnUNetPlans.3d_lowres",
        "preprocess.nnUNetPlans.3d_fullres",
    }


def test_a_variation_brings_the_plans_it_is_made_from() -> None:
    sizes = {"patch_size": [8, 8, 8], "features": 4, "stages": 3}
    found = jobs(plans=[{"name": "Small", "from": "nnUNetPlans", **sizes}])
    assert needs(found["plan.Small"]) == {"plan.nnUNetPlans"}
    assert not found["plan.Small"].skip_if_output_exists
    assert found["plan.nnUNetPlans"].skip_if_output_exists
    assert not any("nnUNetPlans.3d" in name for name in found)


def test_plans_for_another_memory_have_their_own_name() -> None:
    plans = {"name": "nnUNetPlans_40G", "planner": "nnUNetPlannerResEncL", "gpu_memory_gb": 40.0}
    command = " ".join(jobs(plans=[plans])["plan.nnUNetPlans_40G"].command)
    assert "-pl nnUNetPlannerResEncL -overwrite_plans_name nnUNetPlans_40G -gpu_memory_target 40.0" in command


def test_plans_of_ones_own_are_not_made() -> None:
    found = jobs(plans=["nnUNetPlansMine"])
    assert not any(job.kind == "plan" for job in found.values())
    assert found["preprocess.nnUNetPlansMine.3d_fullres"].depends_on == ()


def test_seeds_are_part_of_the_trainers_name() -> None:
    trainings = [job for job in jobs(seeds=[1, 20], folds=[0, 1]).values() if job.kind == "train"]
    assert [(job.command[5], job.command[3], job.seed) for job in trainings] == [
        ("nnUNetTrainer_seed1", "0", 1),
        ("nnUNetTrainer_seed20", "0", 20),
        ("nnUNetTrainer_seed1", "1", 1),
        ("nnUNetTrainer_seed20", "1", 20),
    ]


class TestPredictions:
    """Held-out images, with all folds of a model, and ensembles of models."""

    def test_a_prediction_uses_all_folds(self) -> None:
        found = jobs(folds=[0, 2], predict={"images": "imagesTs"})
        prediction = found["predict.nnUNetTrainer.nnUNetPlans.3d_fullres"]
        out = f"/study/predictions/{DATASET}/nnUNetTrainer__nnUNetPlans__3d_fullres"
        command = " ".join(prediction.command)
        assert f"-i /raw/{DATASET}/imagesTs -o {out} " in command
        assert " -f 0 2 " in command
        assert needs(prediction) == {f"train.nnUNetTrainer.nnUNetPlans.3d_fullres.fold{fold}" for fold in (0, 2)}

    def test_an_ensemble_averages_what_a_trainer_predicts(self) -> None:
        found = jobs(predict={}, ensemble=True, configurations=["2d", "3d_fullres"])
        members = {f"predict.nnUNetTrainer.nnUNetPlans.{name}" for name in ("2d", "3d_fullres")}
        assert needs(found["ensemble.nnUNetTrainer"]) == members
        assert all("--save_probabilities" in found[name].command for name in members)

    def test_the_cascade_predicts_after_its_first_stage(self) -> None:
        found = jobs(predict={}, configurations=["3d_lowres", "3d_cascade_fullres"], folds=[0, 1, 2, 3, 4])
        cascade = found["predict.nnUNetTrainer.nnUNetPlans.3d_cascade_fullres"]
        assert "predict.nnUNetTrainer.nnUNetPlans.3d_lowres" in needs(cascade)
        assert "-prev_stage_predictions" in cascade.command

    def test_the_cascade_trains_after_all_folds_of_its_first_stage(self) -> None:
        found = jobs(configurations=["3d_lowres", "3d_cascade_fullres"], folds=[0, 1, 2, 3, 4])
        first_stage = {f"train.nnUNetTrainer.nnUNetPlans.3d_lowres.fold{fold}" for fold in range(5)}
        needed = needs(found["train.nnUNetTrainer.nnUNetPlans.3d_cascade_fullres.fold3"])
        assert needed == {"preprocess.nnUNetPlans.3d_fullres", *first_stage}

    def test_held_out_images_with_references_are_evaluated(self) -> None:
        found = jobs(predict={"references": "labelsTs"}, ensemble=True, configurations=["2d", "3d_fullres"])
        evaluation = found["evaluate.held_out"]
        names = ("nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer__ensemble")
        folders = " ".join(f"/study/predictions/{DATASET}/{name}" for name in names)
        assert f"-pred {folders} -ref /raw/{DATASET}/labelsTs " in " ".join(evaluation.command)
        assert "ensemble.nnUNetTrainer" in needs(evaluation)


def test_a_model_of_all_cases_has_no_cross_validation_to_evaluate() -> None:
    assert not any(job.kind == "evaluate" for job in jobs(folds=["all"]).values())


class TestResources:
    """What jobs ask for."""

    def test_only_trainings_and_predictions_ask_for_gpus(self) -> None:
        found = jobs(resources={"gpus": 2, "cpus": 6, "memory_gb": 40.0, "hours": 1.5}, predict={})
        asked = {job.kind: (job.resources.gpus, job.resources.cpus, job.resources.minutes) for job in found.values()}
        expected = {"plan": 0, "preprocess": 0, "train": 2, "predict": 1, "evaluate": 0}
        assert asked == {kind: (gpus, 6, 90) for kind, gpus in expected.items()}
        (training,) = (job for job in found.values() if job.kind == "train")
        assert "-num_gpus 2" in " ".join(training.command)

    def test_on_the_cpu_nobody_asks_for_gpus(self) -> None:
        found = jobs(resources={"device": "cpu"})
        assert {job.resources.gpus for job in found.values()} == {0}

    def test_worker_processes_are_those_of_the_file_or_of_the_shell_or_as_many_as_there_are_cores(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def workers(**keys: object) -> tuple[str, ...]:
            found = jobs(**keys)["train.nnUNetTrainer.nnUNetPlans.3d_fullres.fold0"].environment
            return found["nnUNet_n_proc_DA"], found["nnUNet_def_n_proc"]

        monkeypatch.setattr("nnunet_godc.study.definition.available_cores", lambda: 12)
        for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
            monkeypatch.delenv(name, raising=False)
        assert workers() == ("12", "8")
        assert workers(resources={"executor": "slurm"}) == ("8", "8")
        assert workers(resources={"cpus": 3}) == ("3", "3")
        monkeypatch.setenv("nnUNet_n_proc_DA", "6")
        assert workers() == ("6", "8")
        assert workers(resources={"cpus": 3}) == ("3", "3")
        assert workers(environment={"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "1"}) == ("2", "1")

    def test_augmentation_without_workers_is_for_trainings_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # nnU-Net's planning sets so many threads of torch, which refuses 0
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        for found in (jobs(), jobs(environment={"nnUNet_n_proc_DA": "0"})):
            workers = {job.kind: job.environment["nnUNet_n_proc_DA"] for job in found.values()}
            assert workers == {"plan": "1", "preprocess": "1", "train": "0", "evaluate": "1"}

    def test_predictions_have_few_workers(self) -> None:
        predicting = "predict.nnUNetTrainer.nnUNetPlans.3d_fullres"
        for cpus, workers in ((1, "1"), (8, "3")):
            command = " ".join(jobs(resources={"cpus": cpus}, predict={})[predicting].command)
            assert f"-npp {workers} -nps {workers}" in command


def test_options_of_the_evaluation_are_passed_on() -> None:
    options = {"metrics": ["overlap", "surface"], "nsd_tolerance": 2, "quick": True, "slow": False}
    command = " ".join(jobs(evaluate=options)[f"evaluate.{DATASET}"].command)
    assert f" --out /study/evaluation/{DATASET} " in command
    assert command.endswith(" --metrics overlap surface --nsd-tolerance 2 --quick")


def job(name: str, *after: str) -> Job:
    return Job(id=name, kind="train", command=("true",), depends_on=after)


def test_a_circle_of_jobs_is_refused() -> None:
    with pytest.raises(ValueError, match="circle: a, b"):
        in_order([job("a", "b"), job("b", "a"), job("c")])


def test_dependents_are_found_through_others() -> None:
    assert list(dependents("a", [job("c", "b"), job("b", "a"), job("a"), job("d")])) == ["b", "c"]
