"""Gradient per voxel: theory against autograd, and what GODC makes of it."""

import pytest
import torch
from torch import Tensor

from nnunet_godc.losses import GODCConfig, GODCLoss, soft_statistics, soft_union
from nnunet_godc.losses.gradients import measured_gradients, theoretical_gradients


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, regions and a mask of 3 samples with 2 classes; one sample lacks a class."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand((3, 2, 12, 10), generator=generator, dtype=torch.float64)
    target = torch.rand((3, 2, 12, 10), generator=generator) > torch.tensor([0.9, 0.5, 0.7])[:, None, None, None]
    target[2, 1] = False
    mask = torch.rand((3, 1, 12, 10), generator=generator) > 0.2
    return probabilities, target, mask


@pytest.mark.parametrize("exponent", [0, 1, 2, 0.5])
def test_autograd_gives_what_the_theory_says(batch: tuple[Tensor, Tensor, Tensor], exponent: float) -> None:
    probabilities, target, mask = batch
    loss = GODCLoss(do_bg=True, ddp=False, config=GODCConfig(exponent=exponent, smooth=0))
    measured = measured_gradients(lambda p, y: loss(p, y, mask), probabilities, target, mask)
    statistics = soft_statistics(probabilities, target, mask)
    union = soft_union(statistics)
    weight, _ = loss.weight(statistics, voxels=120)
    theory = theoretical_gradients(union, statistics.intersection / union, weight)
    assert measured.inside[2, 1].isnan()
    there = ~measured.inside.isnan()
    torch.testing.assert_close(measured.inside[there], theory.inside[there])
    torch.testing.assert_close(measured.outside, theory.outside)


def test_what_is_masked_is_no_voxel_of_the_object(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    probabilities, target, mask = batch
    measured = measured_gradients(lambda p, y: (p * mask).sum() * 3, probabilities, target, mask)
    torch.testing.assert_close(measured.inside.nan_to_num(3.0), torch.full((3, 2), 3.0, dtype=torch.float64))
