"""Small networks of nnU-Net's two architectures, in 2D and 3D."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

KERNELS = {2: [[3, 3]] * 3, 3: [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
STRIDES = {2: [[1, 1], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
PATCH = {2: (16, 16), 3: (8, 16, 16)}


def unet(architecture: type[nn.Module], dimensions: int, **changes: Any) -> nn.Module:
    """A network of three stages, initialised as nnU-Net does."""
    torch.manual_seed(0)
    plain = architecture is PlainConvUNet
    options = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": [8, 16, 24],
        "conv_op": nn.Conv3d if dimensions == 3 else nn.Conv2d,
        "kernel_sizes": KERNELS[dimensions],
        "strides": STRIDES[dimensions],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": 2 if plain else 1,
        "num_classes": 3,
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d,
        "norm_op_kwargs": {"affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }
    network = architecture(**(options | changes))
    network.apply(network.initialize)
    return network


@pytest.fixture(params=[(PlainConvUNet, 2), (PlainConvUNet, 3), (ResidualEncoderUNet, 2), (ResidualEncoderUNet, 3)])
def make(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    """Makes the network of one architecture and dimension; `make.patch` is an input for it."""
    architecture, dimensions = request.param

    def network(**changes: Any) -> nn.Module:
        return unet(architecture, dimensions, **changes)

    network.patch = torch.randn(2, 1, *PATCH[dimensions], generator=torch.Generator().manual_seed(1))
    network.dimensions = dimensions
    return network


@pytest.fixture
def unet_3d() -> Callable[..., nn.Module]:
    def network(architecture: type[nn.Module] = PlainConvUNet, **changes: Any) -> nn.Module:
        return unet(architecture, 3, **changes)

    return network
