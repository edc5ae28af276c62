"""Study files: what they may say, and that every error points at its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.errors import UserError
from nnunet_godc.study.checks import Problem, class_problems
from nnunet_godc.study.definition import StudyConfig
from nnunet_godc.study.study_file import (
    find_study_file,
    find_study_folder,
    read_definition,
    read_study,
    shipped_studies,
)
from nnunet_godc.study.trainers import _place_of, look_up

WriteStudy = Callable[[str], Path]

SMALL = """\
datasets: [901]
trainers: [nnUNetTrainer]
"""


def problems_of(path: Path) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(UserError) as raised:
        read_definition(path)
    return [line.removeprefix(f"{path}, ") for line in str(raised.value).splitlines()]


def test_what_is_not_said_is_nnunets_default(write_study: WriteStudy) -> None:
    definition = read_definition(write_study(SMALL))
    assert definition.configurations == ["3d_fullres"]
    assert [plans.name for plans in definition.plans] == ["nnUNetPlans"]
    assert definition.folds == [0, 1, 2, 3, 4]
    assert definition.seeds == []
    assert (definition.resources.executor, definition.resources.device) == ("local", "cuda")


def test_variables_of_the_environment_stay_as_they_are_written(write_study: WriteStudy) -> None:
    definition = read_definition(write_study(SMALL + "environment: {nnUNet_compile: off, A: 007, B: 1e3}\n"))
    assert definition.environment == {"nnUNet_compile": "off", "A": "007", "B": "1e3"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("datasets: [901]\n", "line 1, column 1: 'trainers' is missing; add it."),
        (SMALL + "fold: [0]\n", "line 3, column 1: 'fold' is unknown; did you mean 'folds'?"),
        (
            SMALL + "evaluate: {baseline: nnUNetTrainr}\n",
            "line 3, column 22: nnUNetTrainr is none of the trainers; they are nnUNetTrainer.",
        ),
        (SMALL + "folds: 0\n", "line 3, column 8: folds needs a list, such as [0], not 0."),
        (SMALL + "folds: [0, -1]\n", "line 3, column 12: folds are numbers from 0, or all, not -1."),
        (SMALL + "folds: [0, one]\n", "line 3, column 12: folds are numbers from 0, or all, not 'one'."),
        (SMALL + "folds: []\n", "line 3, column 8: folds needs at least one entry, not []."),
        (SMALL + "folds: [0, 1, 0]\n", "line 3, column 15: 0 stands twice in folds; keep one."),
        (SMALL + "seeds: [1.5]\n", "line 3, column 9: seeds needs a whole number, not 1.5."),
        (SMALL + "ensemble: perhaps\n", "line 3, column 11: ensemble needs true or false, not 'perhaps'."),
        (SMALL + "name: a/b\n", "line 3, column 7: name may hold letters, digits, and . _ - only, not 'a/b'."),
        (
            SMALL + "configurations: [3d_fulres]\n",
            "line 3, column 18: '3d_fulres': configurations is one of 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres; "
            "did you mean 3d_fullres?",
        ),
        (
            SMALL + "resources:\n  cpus: 4\n  gpu: 1\n",
            "line 5, column 3: 'gpu' is unknown; did you mean 'gpus'?",
        ),
        (
            SMALL + "resources:\n  slurm:\n    partitions: gpu\n",
            "line 5, column 5: 'partitions' is unknown; did you mean 'partition'?",
        ),
        (SMALL + "resources: {gpus: 0}\n", "line 3, column 19: gpus needs at least 1, not 0."),
        (SMALL + "resources: fast\n", "line 3, column 12: resources needs a block of keys and values, not 'fast'."),
        (SMALL + "resources: {hours: 0}\n", "line 3, column 20: hours needs more than 0, not 0."),
        (
            SMALL + "resources: {device: gpu}\n",
            "line 3, column 21: device is one of cuda, cpu, mps, not 'gpu'.",
        ),
        (SMALL + "trainers: [nnUNetTrainerGODC]\n", "line 3, column 1: 'trainers' stands twice; keep one."),
        (
            SMALL + "folds: [0\n",
            "line 4, column 1: expected ',' or ']', but got '<stream end>'; correct the YAML there.",
        ),
        (SMALL + "folds:\t[0]\n", "line 3, column 7: found character '\\t' that cannot start any token"),
        ("- 901\n", "line 1, column 1: a study file is a mapping that begins like `datasets: [501]`."),
        ("trainers: [nnUNetTrainer]\n", "line 1, column 1: 'datasets' is missing; add it."),
        (
            SMALL + "plans: [nnUNetPlans, nnUNetPlans]\n",
            "line 3, column 22: nnUNetPlans stands twice in plans; keep one.",
        ),
        (
            SMALL + "plans:\n  - {name: Small, from: nnUNetPlans, patch_size: [8, 8, 8], features: 4, stages: 2}\n",
            "line 4, column 82: stages needs at least 3, not 2.",
        ),
        (
            "datasets: [901]\ntrainers: [nnUNetTrainer_seed2]\nseeds: [1]\n",
            "line 2, column 12: nnUNetTrainer_seed2 has a seed already; leave it out here or in seeds.",
        ),
        (
            SMALL + "plans:\n  - name: nnUNetPlansSmall\n    stages: 3\n",
            "line 5, column 13: stages needs `from: PLANS`, the plans that it is a variation of.",
        ),
        (
            SMALL + "plans:\n  - name: nnUNetPlansSmall\n    from: nnUNetPlans\n    stages: 3\n",
            "line 4, column 5: a variation also says patch_size, features.",
        ),
        (
            SMALL + "plans:\n  - {name: Small, from: Other, patch_size: [8, 8, 8], features: 4, stages: 3}\n",
            "line 4, column 25: there are no plans Other above this line to vary, and nnU-Net makes none so called.",
        ),
        (
            SMALL + "plans:\n  - {name: nnUNetPlans, gpu_memory_gb: 40}\n",
            "line 4, column 12: nnUNetPlans are nnU-Net's own, made by its ExperimentPlanner; give plans for another",
        ),
        (
            SMALL + "plans:\n  - {name: nnUNetPlans, planner: nnUNetPlannerResEncL}\n",
            "line 4, column 12: nnUNetPlans are nnU-Net's own, made by its ExperimentPlanner; give plans for another",
        ),
        (
            SMALL + "folds: [0, all]\n",
            "line 3, column 12: fold all validates on the cases that it was trained on; train it in a study of its",
        ),
        (SMALL + "seeds: [1000000000]\n", "line 3, column 9: seeds needs less than 1,000,000,000, not 1000000000."),
        (
            SMALL + "configurations: [2d]\nplans:\n"
            "  - {name: Small, from: nnUNetPlans, patch_size: [8, 8, 8], features: 4, stages: 3}\n",
            "line 3, column 18: Small, being a variation, have 3d_fullres only; leave 2d out.",
        ),
        (
            SMALL + "configurations: [2d, 3d_fullres]\nplans:\n"
            "  - {name: Small, from: nnUNetPlans, configuration: 2d, patch_size: [8, 8], features: 4, stages: 3}\n",
            "line 3, column 22: Small, being a variation, have 2d only; leave 3d_fullres out.",
        ),
        (
            SMALL + "ensemble: true\nconfigurations: [2d, 3d_fullres]\n",
            "line 3, column 11: an ensemble needs predictions; add `predict: {images: imagesTs}`.",
        ),
        (
            SMALL + "ensemble: true\npredict: {}\n",
            "line 3, column 11: an ensemble needs at least two plans or configurations.",
        ),
        (
            SMALL + "configurations: [3d_cascade_fullres]\n",
            "line 3, column 18: the cascade starts from 3d_lowres's predictions of all cases: add 3d_lowres, and folds",
        ),
    ],
)
def test_every_mistake_is_told_with_its_place(write_study: WriteStudy, text: str, problem: str) -> None:
    (shown,) = problems_of(write_study(text))
    assert shown.startswith(problem)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write_study: WriteStudy) -> None:
    text = "datasets: []\ntrainers: [1]\nfold: [0]\nresources: {cpu: 2}\n"
    places = [problem.partition(":")[0] for problem in problems_of(write_study(text))]
    assert places == ["line 1, column 11", "line 2, column 12", "line 3, column 1", "line 4, column 13"]


def test_what_is_wrong_in_itself_hides_nothing_else(nnunet: Path, write_study: WriteStudy) -> None:
    text = (
        "datasets: [901, 902, x, 901]\ntrainers: [1, nnUNetTrainer, nnUNetTrainer]\nfolds: [-1, 9, 0, 0]\nfold: 1\n"
        "folds: [-1, 9, 0, 0]\nresources: {cpu: 2}\nplans: [{nom: A}, nnUNetPlansMine, nnUNetPlansMine]\n"
        "evaluate: {baseline: nnUNetTrainerX}\nensemble: true\n"
    )
    with pytest.raises(UserError) as raised:
        read_study(write_study(text), lambda definition: [Problem(("trainers", 0), "is not found.")])
    shown = [line.partition("study.yaml, line ")[2] for line in str(raised.value).splitlines()]
    assert [line.partition(":")[0].replace(" column ", "") for line in shown] == [
        *("1,17", "1,22", "1,25"),
        *("2,12", "2,15", "2,30"),
        "4,1",
        *("5,1", "5,9", "5,13", "5,19"),
        "6,13",
        *("7,9", "7,10", "7,19", "7,36", "7,36"),
    ]


def test_folds_are_those_of_the_splits(nnunet: Path, write_study: WriteStudy) -> None:
    with pytest.raises(UserError, match=r"line 3, column 9: Dataset901_Tiny is split into folds 0 to 4; of fold 9"):
        read_study(write_study(SMALL + "folds: [9]\n"))
    folder = nnunet / "preprocessed" / "Dataset901_Tiny"
    folder.mkdir()
    (folder / "splits_final.json").write_text(json.dumps([{}] * 10))
    read_study(write_study(SMALL + "folds: [9]\n"))


class TestFolder:
    """`status`, `collect` and `cancel` take what `run` takes."""

    def test_a_file_stands_for_the_folder_that_run_makes(
        self, write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert find_study_folder(str(write_study(SMALL))) == tmp_path / "study"
        assert find_study_folder(str(write_study(SMALL + "name: pancreas\n"))) == tmp_path / "pancreas"
        assert find_study_folder("table1") == tmp_path / "table1"
        assert find_study_folder(str(tmp_path)) == tmp_path

    def test_what_is_neither_file_nor_folder_is_told(self) -> None:
        with pytest.raises(UserError, match="did you mean table1"):
            find_study_folder("tabel1")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_definition(path)


class TestDatasets:
    """Ids and names, as nnU-Net has them."""

    @pytest.mark.parametrize("written", ["901", "Dataset901_Tiny", "'901'"])
    def test_ids_and_names_are_the_same(self, nnunet: Path, write_study: WriteStudy, written: str) -> None:
        study = read_study(write_study(f"datasets: [{written}]\ntrainers: [nnUNetTrainer]\n"))
        assert study.datasets == ["Dataset901_Tiny"]
        assert study.raw == str(nnunet / "raw")
        assert study.name == "study"

    def test_an_unknown_one_is_told_with_its_place(self, nnunet: Path, write_study: WriteStudy) -> None:
        with pytest.raises(UserError, match=r"line 1, column 17: there is no dataset Dataset901_Tinny .* mean Dataset"):
            read_study(write_study("datasets: [901, Dataset901_Tinny]\ntrainers: [nnUNetTrainer]\n"))

    def test_two_of_one_number_are_ambiguous(self, nnunet: Path, write_study: WriteStudy) -> None:
        (nnunet / "results" / "Dataset901_Other").mkdir()
        with pytest.raises(UserError, match="ambiguous: there are Dataset901_Other, Dataset901_Tiny, and nnU-Net"):
            read_study(write_study(SMALL))
        with pytest.raises(UserError, match=r"Dataset901_Tiny and Dataset901_Other have one number.*; rename one"):
            read_study(write_study("datasets: [Dataset901_Tiny]\ntrainers: [nnUNetTrainer]\n"))

    def test_one_that_is_listed_twice_is_told(self, nnunet: Path, write_study: WriteStudy) -> None:
        with pytest.raises(UserError, match="line 1, column 17: a dataset is listed twice"):
            read_study(write_study("datasets: [901, Dataset901_Tiny]\ntrainers: [nnUNetTrainer]\n"))

    @pytest.mark.parametrize(
        ("predict", "place"),
        [("{images: imagesTx}", "line 3, column 19: .*imagesTx"), ("{references: nowhere}", "column 23: .*nowhere")],
    )
    def test_folders_of_images_to_predict_have_to_exist(
        self, nnunet: Path, write_study: WriteStudy, predict: str, place: str
    ) -> None:
        (nnunet / "raw" / "Dataset901_Tiny" / "imagesTs").mkdir()
        with pytest.raises(UserError, match=f"{place}; create it"):
            read_study(write_study(f"{SMALL}predict: {predict}\n"))

    def test_folders_that_are_not_set_are_named(
        self, nnunet: Path, write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("nnUNet_results")
        with pytest.raises(UserError, match="nnUNet_results not set"):
            read_study(write_study(SMALL))


class TestPlans:
    """Plans that nobody makes have to exist."""

    TEXT = SMALL + "plans: [nnUNetPlansMine]\n"

    def test_plans_of_ones_own_are_taken_where_they_exist(self, nnunet: Path, write_study: WriteStudy) -> None:
        (nnunet / "preprocessed" / "Dataset901_Tiny").mkdir()
        (nnunet / "preprocessed" / "Dataset901_Tiny" / "nnUNetPlansMine.json").touch()
        read_study(write_study(self.TEXT))

    def test_otherwise_they_are_told(self, nnunet: Path, write_study: WriteStudy) -> None:
        with pytest.raises(UserError, match="line 3, column 9: Dataset901_Tiny has no plans nnUNetPlansMine yet"):
            read_study(write_study(self.TEXT))

    def test_plans_of_the_same_name_that_another_planner_made_are_told(
        self, nnunet: Path, write_study: WriteStudy
    ) -> None:
        (nnunet / "preprocessed" / "Dataset901_Tiny").mkdir()
        made = {"experiment_planner_used": "nnUNetPlannerResEncL"}
        (nnunet / "preprocessed" / "Dataset901_Tiny" / "Mine.json").write_text(json.dumps(made))
        with pytest.raises(
            UserError, match="line 3, column 16: Dataset901_Tiny has plans Mine already, which nnUNetPlann"
        ):
            read_study(write_study(SMALL + "plans: [{name: Mine, planner: nnUNetPlannerResEncM}]\n"))


class TestClasses:
    """Trainers and planners that nnU-Net does not find."""

    @staticmethod
    def problems(**keys: object) -> list[Problem]:
        definition = StudyConfig.model_validate({"datasets": [901], **keys})
        planners = [plans.planner for plans in definition.plans if plans.planner]
        return list(class_problems(definition, look_up(definition.trainers, planners)))

    def test_those_that_are_installed_need_no_search(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("subprocess.run", None)  # starting nnU-Net would fail
        plans = [{"name": "A", "planner": "nnUNetPlannerResEncM"}]
        assert self.problems(trainers=["nnUNetTrainer", "nnUNetTrainerDiceLoss"], plans=plans) == []

    @pytest.mark.slow
    def test_the_nearest_are_named(self) -> None:
        plans = [{"name": "A", "planner": "nnUNetPlannerResEnkM"}]
        trainer, planner = self.problems(trainers=["nnUNetTrainer_5epochs", "nnUNetTrainerGDOC"], plans=plans)
        assert trainer.location == ("trainers", 1)
        assert trainer.sentence.endswith("did you mean nnUNetTrainerGODC?")
        assert planner.location == ("plans", 0, "planner")
        assert planner.sentence.endswith("did you mean nnUNetPlannerResEncM?")


class TestShipped:
    """The studies that come with the package."""

    def test_they_are_found_by_name(self) -> None:
        assert shipped_studies() == ["lung-nodules", "smoke", "table1", "table2", "table3", "table3-2d"]
        assert find_study_file("smoke").name == "smoke.yaml"

    @pytest.mark.parametrize("name", shipped_studies())
    def test_they_are_valid_and_their_trainers_exist(self, name: str) -> None:
        definition = read_definition(find_study_file(name))
        # which say `class` in a file, or are combined by their names, so that they need no search
        assert all(_place_of(trainer) for trainer in definition.trainers)

    def test_a_misspelt_name_is_pointed_out(self) -> None:
        with pytest.raises(UserError, match="did you mean table1"):
            find_study_file("tabel1")

    def test_a_file_goes_before_a_shipped_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("smoke").write_text(SMALL)
        assert find_study_file("smoke") == Path("smoke")
