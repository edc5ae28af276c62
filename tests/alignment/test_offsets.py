"""LFAM's offsets in a trained network: seen per level, measured in voxels and mm, and taken away."""

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_godc.alignment import LateralFeatureAlignment, LFAMConfig, align_skips
from nnunet_godc.alignment.offsets import LIMITS, OffsetLengths, seen_offsets, weights_without_offsets


def aligned_network(config: LFAMConfig, kernels: list[list[int]] | None = None) -> nn.Module:
    """A U-Net of three stages in 3D, whose offsets are no longer zero."""
    torch.manual_seed(0)
    network: nn.Module = PlainConvUNet(
        1, 3, [4, 8, 8], nn.Conv3d, kernels or [[3, 3, 3]] * 3, [[1] * 3, [2] * 3, [2] * 3], 1, 2, 1,
        norm_op=nn.InstanceNorm3d, nonlin=nn.LeakyReLU,
    )  # fmt: skip
    align_skips(network, config)
    for module in network.modules():
        if isinstance(module, LateralFeatureAlignment):
            nn.init.normal_(module.offset.weight, std=0.1)
            nn.init.normal_(module.weight, std=0.1)
    # what is on a residual path contributes nothing before it is trained
    for name, parameter in network.named_parameters():
        if "from_inner" in name:
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


CONFIGS = [
    LFAMConfig(),
    LFAMConfig(shared=True),
    LFAMConfig(reduction=2, first_level=1),
    LFAMConfig(guided=True),
    LFAMConfig(modulation=True, separable=True, max_offset=1.5),
]
IMAGE = torch.randn((1, 1, 8, 16, 16), generator=torch.Generator().manual_seed(1))


def offsets_of(network: nn.Module) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    with torch.no_grad(), seen_offsets(network, lambda level, offsets: found.update({level: offsets})):
        network(IMAGE)
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_each_level_is_seen_with_its_own_offsets(config: LFAMConfig) -> None:
    network = aligned_network(config)
    with torch.no_grad():
        before = network(IMAGE)
    found = offsets_of(network)
    with torch.no_grad():
        assert torch.equal(network(IMAGE), before)
    sizes: dict[int, Any] = {0: (8, 16, 16), 1: (4, 8, 8)}
    assert sorted(found) == list(range(config.first_level, 2))
    for level, offsets in found.items():
        assert offsets.shape == (1, 27, 3, *sizes[level])
        assert offsets.abs().max() > 0
        assert config.max_offset is None or offsets.abs().max() <= config.max_offset


def test_offsets_in_the_plane_have_two_numbers() -> None:
    found = offsets_of(aligned_network(LFAMConfig(), [[1, 3, 3], [3, 3, 3], [3, 3, 3]]))
    assert found[0].shape == (1, 9, 2, 8, 16, 16)
    assert found[1].shape == (1, 27, 3, 4, 8, 8)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_without_offsets_all_else_is_kept(config: LFAMConfig) -> None:
    network = aligned_network(config)
    with torch.no_grad():
        before = network(IMAGE)
        kept = {name: weight.clone() for name, weight in network.state_dict().items()}
        bare = weights_without_offsets(network)
        assert all(torch.equal(weight, kept[name]) for name, weight in network.state_dict().items())
        network.load_state_dict(bare)
        assert all(offsets.abs().max() == 0 for offsets in offsets_of(network).values())
        assert not torch.allclose(network(IMAGE), before)
    changed = {name for name in kept if not torch.equal(bare[name], kept[name])}
    assert changed
    assert all(".offset." in name for name in changed)
    if config.modulation:  # its rows stand behind those of the offsets
        name = next(name for name in changed if name.endswith("offset.weight"))
        assert torch.equal(bare[name][81:], kept[name][81:])


def test_lengths_in_voxels_and_in_mm() -> None:
    offsets = torch.zeros(1, 2, 3, 1, 1, 2)  # two taps at two positions
    offsets[0, 0, :, 0, 0, 0] = torch.tensor([1.0, 2.0, 2.0])
    offsets[0, 1, :, 0, 0, 1] = torch.tensor([0.5, 0.0, 0.0])
    lengths = OffsetLengths()
    for _ in range(2):
        lengths.add(offsets, [4.0, 1.0, 1.0])
    row = lengths.row()
    assert row["samples"] == 8
    assert row["mean_voxels"] == pytest.approx(3.5 / 4)
    assert row["mean_mm"] == pytest.approx((24**0.5 + 2) / 4)
    assert row["above_0.5"] == pytest.approx(1 / 4)  # of exactly half a voxel is not more than half
    assert row["above_0.3536"] == pytest.approx(2 / 4)
    assert LIMITS[8] == 0.5


def test_lengths_in_the_plane_take_the_planes_spacing() -> None:
    offsets = torch.zeros(1, 1, 2, 1, 1, 1)
    offsets[0, 0, :, 0, 0, 0] = torch.tensor([3.0, 4.0])
    lengths = OffsetLengths()
    lengths.add(offsets, [9.0, 0.5, 0.5])
    assert lengths.row()["mean_mm"] == pytest.approx(2.5)
