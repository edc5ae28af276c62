import copy
import json

import pytest

from nnunet_godc.plans import shrink, write_shrunken_plans

PLANS = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "Dataset500_Phantom",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "2d": {"patch_size": [80, 96]},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "patch_size": [40, 80, 96],
            "batch_size": 2,
            "spacing": [5.0, 3.6, 3.6],
            "batch_dice": False,
            "architecture": {
                "arch_kwargs": {
                    "n_stages": 4,
                    "features_per_stage": [32, 64, 128, 256],
                    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
                    "n_conv_per_stage": [2, 2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2, 2],
                }
            },
        },
    },
}
SIZE = {"patch_size": (16, 32, 32), "features": 8, "stages": 3}


def test_the_copy_is_small_and_keeps_the_planned_kernels_and_strides():
    shrunken = shrink(PLANS, name="nnUNetPlansDemo", **SIZE)
    assert shrunken["plans_name"] == "nnUNetPlansDemo"
    assert list(shrunken["configurations"]) == ["3d_fullres"]
    configuration = shrunken["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [16, 32, 32]
    assert configuration["spacing"] == [5.0, 3.6, 3.6]
    assert configuration["architecture"]["arch_kwargs"] == {
        "n_stages": 3,
        "features_per_stage": [8, 16, 32],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }


def test_preprocessed_data_of_the_planned_network_is_not_mistaken_for_that_of_the_copy():
    configuration = shrink(PLANS, name="nnUNetPlansDemo", **SIZE)["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlansDemo_3d_fullres"


def test_a_given_spacing_replaces_the_planned_one():
    configuration = shrink(PLANS, name="demo", spacing=(6, 5, 5), **SIZE)["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [6, 5, 5]


def test_the_planned_network_stays_as_it_was():
    before = copy.deepcopy(PLANS)
    shrink(PLANS, name="demo", spacing=(6, 5, 5), **SIZE)
    assert before == PLANS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 5}, "5 stages asked for, but the planned network allows 2 to 4"),
        ({"stages": 1}, "1 stages asked for"),
        ({"patch_size": (16, 30, 32)}, r"axis 1 must be a multiple of the stride 4"),
    ],
)
def test_a_size_that_the_network_cannot_have_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        shrink(PLANS, name="demo", **{**SIZE, **change})


def test_a_plan_for_2d_data_is_refused():
    with pytest.raises(ValueError, match="hold no 3d_fullres"):
        shrink({**PLANS, "configurations": {"2d": {}}}, name="demo", **SIZE)


def test_the_file_is_written_beside_the_planned_one(tmp_path):
    planned = tmp_path / "nnUNetPlans.json"
    planned.write_text(json.dumps(PLANS))
    written = write_shrunken_plans(planned, name="nnUNetPlansDemo", **SIZE)
    assert written == tmp_path / "nnUNetPlansDemo.json"
    assert json.loads(written.read_text()) == shrink(PLANS, name="nnUNetPlansDemo", **SIZE)
    assert json.loads(planned.read_text()) == PLANS


def test_another_configuration_can_be_kept():
    both = {"3d_lowres": PLANS["configurations"]["3d_fullres"], **PLANS["configurations"]}
    planned = {**PLANS, "configurations": both}
    shrunken = shrink(planned, name="small", configuration="3d_lowres", **SIZE)
    assert list(shrunken["configurations"]) == ["3d_lowres"]
    assert shrunken["configurations"]["3d_lowres"]["data_identifier"] == "small_3d_lowres"


def test_a_patch_with_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match=r"patch size \[32, 32\]: 3d_fullres has 3 axes"):
        shrink(PLANS, name="demo", **{**SIZE, "patch_size": (32, 32)})
