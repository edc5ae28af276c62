import pytest

from nnunet_godc.seeded_names import seed_of, with_seed, without_seed


@pytest.mark.parametrize("seed", [0, 3, 123456789])
def test_a_name_is_taken_apart_as_it_was_put_together(seed):
    name = with_seed("nnUNetTrainerGODC", seed)
    assert name == f"nnUNetTrainerGODC_seed{seed}"
    assert (without_seed(name), seed_of(name)) == ("nnUNetTrainerGODC", seed)


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainer_seed", "nnUNetTrainer_seed3_long", "seed3", "_seed3"])
def test_a_name_without_a_seed_stays_as_it_is(name):
    assert (without_seed(name), seed_of(name)) == (name, None)
