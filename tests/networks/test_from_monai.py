"""MONAI's networks with the strides of plans."""

from __future__ import annotations

import pytest
import torch

from nnunet_godc.alignment import align_skips

from_monai = pytest.importorskip(
    "nnunet_godc.networks.from_monai", reason="MONAI is an extra: pip install 'nnunet-godc[comparison]'"
)

WIDTHS = (4, 8, 12, 16, 16)
STRIDES = [[1, 2, 2], [2, 2, 2], [1, 1, 1], [2, 1, 2]]


def test_unet_plus_plus_reduces_by_its_strides() -> None:
    network = from_monai.UNetPlusPlus(1, 3, WIDTHS, STRIDES, deep_supervision=True)
    sizes = []
    for level in range(5):
        network.get_submodule(f"conv_{level}_0").register_forward_hook(
            lambda module, args, output: sizes.append(tuple(output.shape[1:]))
        )
    outputs = network(torch.randn(2, 1, 8, 16, 16))
    assert sizes == [(4, 8, 16, 16), (8, 8, 8, 8), (12, 4, 4, 4), (16, 4, 4, 4), (16, 2, 4, 2)]
    assert [output.shape for output in outputs] == [(2, 3, 8, 16, 16)] * 4
    network.deep_supervision = False
    assert outputs[0].equal(network(torch.randn(2, 1, 8, 16, 16))) is False
    torch.testing.assert_close(network.upcat_0_4.upsample.deconv.stride, (1, 2, 2))


@pytest.mark.parametrize("name", ["unet++", "attention"])
def test_lfam_starts_as_the_identity(name: str) -> None:
    torch.manual_seed(0)
    if name == "unet++":
        network = from_monai.UNetPlusPlus(1, 3, WIDTHS, STRIDES)
    else:
        network = from_monai.attention_unet(1, 3, WIDTHS[:4], STRIDES[:3])
    x = torch.randn(2, 1, 8, 16, 16)
    with torch.no_grad():
        expected = network(x)
        assert align_skips(network)(x).equal(expected)
