"""CE-Net as its paper describes it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet34

from nnunet_godc.alignment import align_skips
from nnunet_godc.networks.ce_net import CENet, DenseAtrousConvolution, ResidualMultiKernelPooling


@pytest.fixture(scope="module")
def network() -> CENet:
    torch.manual_seed(0)
    return CENet(1, 3).eval()


def reach(block: DenseAtrousConvolution) -> int:
    """From which voxel to which, along an axis, one output depends on the input."""
    for name, parameter in block.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") or parameter.eq(0).all() else 1.0)
    x = torch.ones(1, 1, 31, 31, requires_grad=True)
    block(x)[0, 0, 15, 15].backward()
    seen = x.grad[0, 0, 15].nonzero()
    return int(seen.max() - seen.min() + 1)


def test_the_atrous_cascades_see_19_9_7_and_3_voxels() -> None:
    seen = {}
    for silent in (None, "rate_5", "rate_1", "rate_3"):
        block = DenseAtrousConvolution(1)
        if silent is not None:
            nn.init.zeros_(block.get_submodule(silent).weight)
        seen[silent] = reach(block)
    assert seen == {None: 19, "rate_5": 9, "rate_1": 7, "rate_3": 3}


def test_the_pooling_keeps_the_features_and_adds_four_channels_of_context() -> None:
    block = ResidualMultiKernelPooling(8)
    x = torch.randn(2, 8, 12, 12)
    y = block(x)
    assert y.shape == (2, 12, 12, 12)
    assert y[:, :8].equal(x)
    nn.init.ones_(block.reduce.weight)
    nn.init.zeros_(block.reduce.bias)
    expected = nn.functional.max_pool2d(x, 6).sum(1)  # the corners of an enlarged map are those of the map
    torch.testing.assert_close(block(x)[:, 11, [0, 0, -1, -1], [0, -1, 0, -1]], expected.flatten(1))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (192, 224)])
def test_the_output_has_the_size_of_the_input(network: CENet, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)


def test_as_many_parameters_as_the_published_code_has() -> None:
    # counted of the layers that it lists: ResNet-34 without its classifier, three 3x3 and one 1x1 convolutions of 512
    # channels, one 1x1 convolution to a channel, four decoder blocks, and the head
    encoder = sum(p.numel() for name, p in resnet34().named_parameters() if not name.startswith("fc."))
    atrous = 3 * (512 * 512 * 9 + 512) + 512 * 512 + 512

    def decoder(before: int, after: int) -> int:
        inner = before // 4
        return before * inner + inner * inner * 9 + inner * after + 2 * inner + after + 2 * (2 * inner + after)

    blocks = decoder(516, 256) + decoder(256, 128) + decoder(128, 64) + decoder(64, 64)
    head = 64 * 32 * 16 + 32 + 32 * 32 * 9 + 32 + 32 * 2 * 9 + 2
    assert sum(p.numel() for p in CENet(3, 2).parameters()) == encoder + atrous + 513 + blocks + head


@pytest.mark.slow
def test_lfam_compiles_with_it_as_one_graph_and_starts_as_the_identity(network: CENet) -> None:
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = network(x)
        aligned = align_skips(copy.deepcopy(network))
        assert [level.weight.shape[0] for level in aligned.alignment.levels.values()] == [64, 128, 256]
        assert aligned(x).equal(expected)
        torch._dynamo.reset()
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
