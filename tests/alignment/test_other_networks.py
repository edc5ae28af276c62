"""LFAM inside the networks of MONAI and segmentation_models_pytorch, and inside a network of one's own."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_godc.alignment import LFAMConfig, Skip, align_skips

nets = pytest.importorskip("monai.networks.nets", reason="MONAI is an extra: pip install 'nnunet-godc[comparison]'")
smp = pytest.importorskip("segmentation_models_pytorch")

ANISOTROPIC = {
    "kernel_size": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "upsample_kernel_size": [[1, 2, 2], [2, 2, 2]],
}
IN_THE_PLANE = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
FIVE_LEVELS = (4, 4, 8, 8, 16, 4)


def dynunet(dimensions: int, **options: Any) -> nn.Module:
    sizes = ANISOTROPIC if dimensions == 3 else IN_THE_PLANE
    return nets.DynUNet(dimensions, 1, 2, filters=[4, 8, 12], **sizes, **options)


# the network, the size of an input, the module below all skips
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "DynUNet 3D": (lambda: dynunet(3), (8, 16, 16), "bottleneck"),
    "DynUNet 2D, residual": (lambda: dynunet(2, res_block=True), (16, 16), "bottleneck"),
    "UNet 3D": (lambda: nets.UNet(3, 1, 2, (4, 8, 12), (2, 2)), (16, 16, 16), "model.1.submodule.1.submodule"),
    "UNet 2D, residual": (
        lambda: nets.UNet(2, 1, 2, (4, 8, 12, 16), (2, 2, 1), num_res_units=1),
        (16, 16),
        "model.1.submodule.1.submodule.1.submodule",
    ),
    "AttentionUnet 3D": (
        lambda: nets.AttentionUnet(3, 1, 2, (4, 8, 12), (2, 2)),
        (8, 8, 8),
        "model.1.submodule.1.submodule",
    ),
    "AttentionUnet 2D": (
        lambda: nets.AttentionUnet(2, 1, 2, (4, 8, 12, 16), (2, 2, 2), kernel_size=5),
        (16, 16),
        "model.1.submodule.1.submodule.1.submodule",
    ),
    "BasicUNet 3D": (lambda: nets.BasicUNet(3, 1, 2, FIVE_LEVELS), (32, 16, 16), "down_4"),
    "BasicUNet 2D": (lambda: nets.BasicUNet(2, 1, 2, FIVE_LEVELS, upsample="nontrainable"), (32, 32), "down_4"),
    "BasicUNetPlusPlus 3D": (lambda: nets.BasicUNetPlusPlus(3, 1, 2, FIVE_LEVELS), (32, 16, 16), "conv_4_0"),
    "BasicUNetPlusPlus 2D": (lambda: nets.BasicUNetPlusPlus(2, 1, 2, FIVE_LEVELS), (32, 32), "conv_4_0"),
    "segmentation_models_pytorch": (
        lambda: smp.Unet("resnet18", 4, None, decoder_channels=(16, 12, 8, 4), in_channels=1, classes=2),
        (64, 64),
        "encoder.layer3",
    ),
}
every_network = pytest.mark.parametrize(("make", "size", "bottleneck"), NETWORKS.values(), ids=NETWORKS.keys())
CONFIGS = {
    "default": LFAMConfig(),
    "guided": LFAMConfig(guided=True),
    "shared": LFAMConfig(shared=True),
    "lean": LFAMConfig(guided=True, modulation=True, first_level=1, reduction=2, separable=True, checkpoint=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def patch(size: tuple[int, ...]) -> Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, list) else output


def perturb(network: nn.Module) -> nn.Module:
    """Moves the alignment away from the identity."""
    torch.manual_seed(2)
    for parameter in network.alignment.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@every_config
@every_network
class TestKnownNetworks:
    def test_the_start_is_bit_for_bit_the_unpatched_network(
        self, make: Callable[[], nn.Module], size: tuple[int, ...], bottleneck: str, config: LFAMConfig
    ) -> None:
        stock = made(make)
        aligned = align_skips(copy.deepcopy(stock), config)
        with torch.no_grad():
            for training in (True, False):
                expected = first(stock.train(training)(patch(size)))
                assert first(aligned.train(training)(patch(size))).equal(expected)
            assert not first(perturb(aligned)(patch(size))).equal(expected)

    def test_the_weights_of_the_network_keep_their_names(
        self, make: Callable[[], nn.Module], size: tuple[int, ...], bottleneck: str, config: LFAMConfig
    ) -> None:
        weights = made(make).state_dict()
        aligned = align_skips(made(make), config)
        result = aligned.load_state_dict(weights, strict=False)
        assert result.unexpected_keys == []
        assert set(result.missing_keys) == {name for name in aligned.state_dict() if name.startswith("alignment.")}

    def test_every_level_learns_and_the_encoder_is_left_alone(
        self, make: Callable[[], nn.Module], size: tuple[int, ...], bottleneck: str, config: LFAMConfig
    ) -> None:
        network = align_skips(made(make), config)
        below: list[Tensor] = []
        network.get_submodule(bottleneck).register_forward_hook(lambda module, args, output: below.append(output))
        first(network(patch(size)))
        first(perturb(network)(patch(size))).square().mean().backward()
        assert below[0].equal(below[1])
        for name, parameter in network.alignment.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("make", "size", "bottleneck"),
    [
        pytest.param(*NETWORKS[name], id=name, marks=() if name == "DynUNet 2D, residual" else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_compiles_as_one_graph_where_the_network_does(
    make: Callable[[], nn.Module], size: tuple[int, ...], bottleneck: str
) -> None:
    network = made(make).eval()
    torch._dynamo.reset()
    whole = torch._dynamo.explain(network)(patch(size)).graph_count == 1
    assert whole or "Basic" in type(network).__name__  # MONAI's UpCat asks torch.jit, which splits the graph
    perturb(align_skips(network))
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=whole)
    with torch.no_grad():
        torch.testing.assert_close(first(compiled(patch(size))), first(network(patch(size))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_copies_and_saved_networks_are_independent(guided: bool) -> None:
    network = align_skips(dynunet(3), LFAMConfig(guided=guided))
    before = network(patch((8, 16, 16))).detach()
    twin = perturb(copy.deepcopy(network))
    assert not twin(patch((8, 16, 16))).equal(before)
    assert network(patch((8, 16, 16))).equal(before)
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert again(patch((8, 16, 16))).equal(twin(patch((8, 16, 16))))


def test_kernels_follow_the_network_level_by_level() -> None:
    levels = align_skips(dynunet(3)).alignment.levels
    assert [tuple(level.weight.shape) for level in levels.values()] == [(4, 4, 1, 3, 3), (8, 8, 3, 3, 3)]


def test_the_skips_of_unet_plus_plus_are_the_encoders_at_the_last_node_of_each_level() -> None:
    network = perturb(align_skips(nets.BasicUNetPlusPlus(2, 1, 2, FIVE_LEVELS)))
    assert [level.weight.shape[0] for level in network.alignment.levels.values()] == [4, 4, 8, 8]
    outputs: dict[str, list[Tensor]] = {}
    for level in range(4):
        for node in range(1, 5 - level):
            name = f"upcat_{level}_{node}"
            seen = outputs.setdefault(name, [])
            network.get_submodule(name).register_forward_hook(lambda m, a, output, seen=seen: seen.append(output))
    network(patch((32, 32)))
    for parameter in network.alignment.parameters():
        nn.init.zeros_(parameter)
    network(patch((32, 32)))
    changed = {name for name, (one, other) in outputs.items() if not one.equal(other)}
    assert changed == {"upcat_0_4", "upcat_1_3", "upcat_2_2", "upcat_3_1"}


class Own(nn.Module):
    """A network that no adapter knows: two levels, the skip added in the one and concatenated in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.lateral = nn.Conv2d(4, 4, 1)
        self.bottom = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.join = Join()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        decoded = nn.functional.interpolate(self.bottom(coarse), scale_factor=2) + self.lateral(coarse)
        return self.head(self.join(decoded, skip=fine))


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, decoded: Tensor, skip: Tensor) -> Tensor:
        return self.merge(torch.cat((nn.functional.interpolate(decoded, scale_factor=2), skip), dim=1))


BY_NAME = [
    Skip(module="join", channels=4, kernel_size=(3, 3), argument="skip"),
    Skip(module="lateral", channels=4, kernel_size=(3, 3)),
]


class TestOwnNetwork:
    def test_skips_are_aligned_where_their_names_say(self) -> None:
        stock = made(Own)
        network = align_skips(copy.deepcopy(stock), skips=BY_NAME)
        assert network(patch((16, 16))).equal(stock(patch((16, 16))))
        perturb(network)(patch((16, 16))).square().mean().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.alignment.parameters())

    def test_offsets_are_guided_where_the_features_pass_together(self) -> None:
        together = Skip(
            module="join.merge", channels=4, kernel_size=(3, 3), argument=0, concatenated_with=4, first=False
        )
        network = align_skips(made(Own), LFAMConfig(guided=True), [together])
        guides = []
        network.alignment.levels["0"].register_forward_pre_hook(
            lambda module, args, kwargs: guides.append(kwargs["guide"]), with_kwargs=True
        )
        decoded = []
        network.join.register_forward_pre_hook(lambda module, args: decoded.append(args[0]))
        network(patch((16, 16)))
        assert guides[0].equal(nn.functional.interpolate(decoded[0], scale_factor=2))

    @pytest.mark.parametrize(
        ("changes", "config", "message"),
        [
            ({"module": "jion"}, LFAMConfig(), "Own has no module 'jion'; did you mean 'join'"),
            ({"kernel_size": (3,)}, LFAMConfig(), r"the kernel size of join is \(3,\); give two numbers"),
            ({"kernel_size": (2, 3)}, LFAMConfig(), r"kernel size \[2, 3\] has an even entry"),
            ({}, LFAMConfig(guided=True), "guided offsets need the decoder's features, and at join the skip passes"),
            ({}, LFAMConfig(first_level=1), "this network has skips at levels 0 to 0 only"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes: dict[str, Any], config: LFAMConfig, message: str) -> None:
        network = made(Own)
        skip = {"module": "join", "channels": 4, "kernel_size": (3, 3), "argument": "skip"} | changes
        with pytest.raises(ValueError, match=message):
            align_skips(network, config, [Skip(**skip)])
        assert not hasattr(network, "alignment")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"channels": 5}, "4 channels pass through join, where its Skip says 5;"),
            ({"concatenated_with": 2}, "4 channels pass through join, where its Skip says 4 and 2 more;"),
            ({"argument": 1}, "join is called with 1 arguments by position and with skip by name"),
            ({"argument": "x_e"}, "its Skip says that the features are argument 'x_e'"),
        ],
    )
    def test_what_passes_otherwise_is_told_at_the_first_batch(self, changes: dict[str, Any], message: str) -> None:
        skip = {"module": "join", "channels": 4, "kernel_size": (3, 3), "argument": "skip"} | changes
        network = align_skips(made(Own), skips=[Skip(**skip)])
        with pytest.raises(ValueError, match=message):
            network(patch((16, 16)))

    def test_a_network_is_aligned_only_once(self) -> None:
        network = align_skips(made(Own), skips=BY_NAME)
        with pytest.raises(ValueError, match="aligned already"):
            align_skips(network, skips=BY_NAME)

    def test_a_sequential_cannot_hold_the_alignment(self) -> None:
        with pytest.raises(ValueError, match="Sequential is a Sequential, which runs all that it holds"):
            align_skips(nn.Sequential(made(Own)), skips=[Skip(module="0.lateral", channels=4, kernel_size=(3, 3))])

    def test_an_unknown_network_is_told_what_to_do(self) -> None:
        with pytest.raises(TypeError, match=r"skip features of Own pass; .* MONAI's DynUNet.* say so with `skips`"):
            align_skips(made(Own))


def test_a_subclass_of_a_known_network_is_not_guessed_at() -> None:
    class Mine(nets.BasicUNet):
        pass

    with pytest.raises(TypeError, match="skip features of Mine pass"):
        align_skips(Mine(2, 1, 2, FIVE_LEVELS))
