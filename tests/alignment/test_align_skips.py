"""LFAM inside nnU-Net's networks."""

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_godc.alignment import AlignedUNetDecoder, LateralFeatureAlignment, LFAMConfig, align_skips

VARIANTS = {
    "default": LFAMConfig(),
    "shared": LFAMConfig(shared=True),
    "guided": LFAMConfig(guided=True),
    "modulated": LFAMConfig(modulation=True),
    "coarse levels": LFAMConfig(first_level=1),
    "all options": LFAMConfig(shared=True, guided=True, modulation=True),
    "reduced": LFAMConfig(reduction=4),
    "finest in-plane": LFAMConfig(finest="in-plane"),
    "finest off": LFAMConfig(finest="off"),
    "separable": LFAMConfig(separable=True),
    "bounded": LFAMConfig(max_offset=2.0),
    "checkpointed": LFAMConfig(checkpoint=True),
    "lean": LFAMConfig(
        shared=True,
        guided=True,
        modulation=True,
        finest="in-plane",
        reduction=2,
        separable=True,
        max_offset=1.5,
        checkpoint=True,
    ),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def perturb(network: nn.Module) -> nn.Module:
    """Moves the alignment away from the identity."""
    torch.manual_seed(2)
    for parameter in network.decoder.alignment.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@every_variant
def test_the_start_is_bit_for_bit_the_unpatched_network(make: Callable[..., nn.Module], config: LFAMConfig) -> None:
    stock = make()
    aligned = align_skips(copy.deepcopy(stock), config)
    with torch.no_grad():
        for ours, theirs in zip(aligned(make.patch), stock(make.patch), strict=True):
            assert ours.equal(theirs)
        # the same inputs do not agree once the alignment has learnt something
        assert not perturb(aligned)(make.patch)[0].equal(theirs)


@every_variant
def test_a_stock_checkpoint_lacks_the_alignment_and_nothing_else(
    make: Callable[..., nn.Module], config: LFAMConfig
) -> None:
    weights = make().state_dict()
    aligned = align_skips(make(), config)
    result = aligned.load_state_dict(weights, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == {name for name in aligned.state_dict() if ".alignment." in name}
    assert set(aligned.state_dict()) - set(weights) == set(result.missing_keys)


@every_variant
def test_every_weight_of_the_alignment_learns(make: Callable[..., nn.Module], config: LFAMConfig) -> None:
    network = perturb(align_skips(make(), config))
    sum(output.square().mean() for output in network(make.patch)).backward()
    for name, parameter in network.decoder.alignment.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_variant
def test_copies_and_saved_networks_are_independent(make: Callable[..., nn.Module], config: LFAMConfig) -> None:
    network = align_skips(make(), config)
    before = network(make.patch)[0].detach()
    twin = perturb(copy.deepcopy(network))
    assert not twin(make.patch)[0].equal(before)
    assert network(make.patch)[0].equal(before)


@every_variant
def test_a_pickled_network_computes_the_same(unet_3d: Callable[..., nn.Module], config: LFAMConfig) -> None:
    network, patch = perturb(align_skips(unet_3d(), config)), torch.randn(1, 1, 8, 16, 16)
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False)(patch)[0].equal(network(patch)[0])


@pytest.mark.parametrize("config", [VARIANTS["default"], VARIANTS["lean"]], ids=["default", "lean"])
def test_compiles_as_one_graph(make: Callable[..., nn.Module], config: LFAMConfig) -> None:
    torch._dynamo.reset()
    network = perturb(align_skips(make(), config))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(make.patch)[0], network(make.patch)[0], rtol=1e-4, atol=1e-5)


def test_the_switch_for_deep_supervision_still_works(make: Callable[..., nn.Module]) -> None:
    network = align_skips(make())
    assert isinstance(network(make.patch), list)
    network.decoder.deep_supervision = False
    assert network(make.patch).shape[2:] == make.patch.shape[2:]


@every_variant
def test_the_feature_map_count_is_what_the_forward_pass_computes(
    make: Callable[..., nn.Module], config: LFAMConfig
) -> None:
    stock, aligned = make(), align_skips(make(), config)
    computed = []

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        computed.append(output[0].numel())

    for module in aligned.decoder.alignment.modules():
        if isinstance(module, LateralFeatureAlignment | nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(count)
    aligned(make.patch)
    size = make.patch.shape[2:]
    assert aligned.compute_conv_feature_map_size(size) - stock.compute_conv_feature_map_size(size) == sum(computed)


def test_kernels_follow_the_plan_stage_by_stage(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d())
    levels = network.decoder.alignment.levels
    assert list(levels) == ["0", "1"]  # none at the bottleneck
    assert levels["0"].weight.shape == (8, 8, 1, 3, 3)
    assert levels["0"].offset.out_channels == 2 * 9  # in-plane
    assert levels["1"].weight.shape == (16, 16, 3, 3, 3)
    assert levels["1"].offset.out_channels == 3 * 27


def test_in_plane_offsets_leave_the_slices_apart(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d())
    level = perturb(network).decoder.alignment.levels["0"]
    features = torch.randn(1, 8, 4, 6, 6)
    changed = features.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        difference = (level(changed) - level(features)).abs().amax((0, 1, 3, 4))
    assert difference[2] > 0
    assert difference[[0, 1, 3]].eq(0).all()


def test_the_first_level_leaves_finer_ones_as_they_are(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d(), LFAMConfig(first_level=1))
    assert list(network.decoder.alignment.levels) == ["1"]


def test_shared_levels_of_one_kernel_use_the_same_weights(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d(n_stages=4, features_per_stage=[4, 8, 16, 16], **deeper()), LFAMConfig(shared=True))
    shared = network.decoder.alignment.inner
    assert set(shared) == {"1x3x3", "3x3x3"}
    assert all(module.weight.shape[:2] == (4, 4) for module in shared.values())
    names = [name for name in network.state_dict() if ".alignment." in name]
    assert sum(name.endswith("offset.weight") for name in names) == 2


def test_shared_weights_are_as_wide_as_the_narrowest_level_that_is_aligned(unet_3d: Callable[..., nn.Module]) -> None:
    [inner] = align_skips(unet_3d(), LFAMConfig(shared=True, first_level=1)).decoder.alignment.inner.values()
    assert inner.weight.shape[:2] == (16, 16)


def test_a_reduced_level_works_on_a_share_of_its_channels(unet_3d: Callable[..., nn.Module]) -> None:
    alignment = align_skips(unet_3d(), LFAMConfig(reduction=4)).decoder.alignment
    assert {name: tuple(module.weight.shape[:2]) for name, module in alignment.inner.items()} == {
        "0": (2, 2),
        "1": (4, 4),
    }


def test_a_reduction_beyond_the_channels_leaves_one(unet_3d: Callable[..., nn.Module]) -> None:
    alignment = align_skips(unet_3d(), LFAMConfig(reduction=100)).decoder.alignment
    assert all(module.weight.shape[0] == 1 for module in alignment.inner.values())


def test_the_finest_level_may_stay_in_its_plane(unet_3d: Callable[..., nn.Module]) -> None:
    kernels = {"kernel_sizes": [[3, 3, 3]] * 3}
    levels = align_skips(unet_3d(**kernels), LFAMConfig(finest="in-plane")).decoder.alignment.levels
    assert tuple(levels["0"].weight.shape[2:]) == (1, 3, 3)
    assert levels["0"].offset_channels == 18
    assert tuple(levels["1"].weight.shape[2:]) == (3, 3, 3)


def test_the_finest_level_may_be_left_out(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d(), LFAMConfig(finest="off"))
    assert list(network.decoder.alignment.levels) == ["1"]
    with pytest.raises(ValueError, match="first_level is 1 and finest is 'off'"):
        align_skips(unet_3d(), LFAMConfig(first_level=1, finest="off"))


def test_offsets_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(skip: torch.Tensor, offset: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        seen.append(offset)
        return skip

    monkeypatch.setattr("nnunet_godc.alignment.lfam.deform_conv", spy)
    for bound in (None, 1.5):
        module = LateralFeatureAlignment(4, (3, 3, 3), max_offset=bound)
        nn.init.normal_(module.offset.weight, std=5.0)
        module(torch.randn(1, 4, 5, 5, 5, generator=torch.Generator().manual_seed(0)))
    free, bounded = seen
    assert free.abs().max() > 10
    assert 1.4 < bounded.abs().max() <= 1.5


@pytest.mark.parametrize("options", [{}, {"modulation": True}, {"separable": True}], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3)], ids=str)
def test_channels_that_fill_up_a_multiple_change_nothing(
    kernel: tuple[int, ...], options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LateralFeatureAlignment(4, kernel, **options).double()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    skip = torch.randn(2, 4, *[4] * len(kernel), dtype=torch.float64, requires_grad=True)
    computed = []
    for padded in (False, True):
        monkeypatch.setattr("nnunet_godc.alignment.lfam._wants_whole_multiples", lambda input, padded=padded: padded)
        output = module(skip)
        leaves = [skip, *module.parameters()]
        computed.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for plain, filled in zip(*computed, strict=True):
        torch.testing.assert_close(filled, plain)


def test_separable_offsets_take_far_fewer_weights() -> None:
    def offset_weights(**options: bool) -> int:
        return sum(p.numel() for p in LateralFeatureAlignment(64, (3, 3, 3), **options).offset_parameters())

    assert 15 * offset_weights(separable=True) < offset_weights()


def test_checkpointing_changes_no_gradient(unet_3d: Callable[..., nn.Module]) -> None:
    gradients = []
    for checkpoint in (False, True):
        network = perturb(align_skips(unet_3d(), LFAMConfig(checkpoint=checkpoint)))
        patch = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
        network(patch)[0].square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_guided_offsets_depend_on_the_decoder(make: Callable[..., nn.Module]) -> None:
    network = perturb(align_skips(make(), LFAMConfig(guided=True)))
    level = network.decoder.alignment.levels["1"]
    guides = []
    level.register_forward_pre_hook(lambda module, inputs, kwargs: guides.append(kwargs["guide"]), with_kwargs=True)
    network(make.patch)
    upsampled = network.decoder.transpconvs[0](network.encoder(make.patch)[-1])
    torch.testing.assert_close(guides[0], upsampled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_under_autocast(dtype: torch.dtype, unet_3d: Callable[..., nn.Module]) -> None:
    network = perturb(align_skips(unet_3d()))
    with torch.autocast("cpu", dtype=dtype):
        output = network(torch.randn(1, 1, 8, 16, 16))
    assert output[0].dtype == dtype
    assert output[0].isfinite().all()


def test_the_modules_take_the_networks_dtype(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d().double())
    assert all(parameter.dtype == torch.float64 for parameter in network.parameters())


def test_real_lits_plans_are_aligned_at_every_skip() -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "lits" / "plans.json"
    if not path.exists():
        pytest.skip(f"no {path}: the real plans are kept outside the repository")
    configurations = json.loads(path.read_text())["configurations"]
    for name in ("2d", "3d_fullres"):
        architecture = configurations[name].get("architecture")
        if architecture is None:
            pytest.skip("these plans are of nnU-Net before 2.4 and name no architecture")
        with torch.device("meta"):
            network = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                1,
                3,
                allow_init=False,
                deep_supervision=True,
            )
            align_skips(network)
        kernels = architecture["arch_kwargs"]["kernel_sizes"]
        levels = network.decoder.alignment.levels
        assert [list(level.weight.shape[2:]) for level in levels.values()] == kernels[:-1]


def test_a_network_is_aligned_only_once(unet_3d: Callable[..., nn.Module]) -> None:
    network = align_skips(unet_3d())
    with pytest.raises(ValueError, match="aligned already"):
        align_skips(network)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv3d(1, 1, 1)), "skip features of Sequential pass"),
        ("residual decoder", "ResidualUNet with the decoder UNetResDecoder pass"),
    ],
)
def test_other_networks_are_refused_by_name(
    network: nn.Module | str, message: str, unet_3d: Callable[..., nn.Module]
) -> None:
    if isinstance(network, str):
        network = unet_3d(ResidualUNet)
    with pytest.raises(TypeError, match=message):
        align_skips(network)


def test_a_first_level_beyond_the_network_is_refused(unet_3d: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"first_level is 2, and this network has skips at levels 0 to 1 only"):
        align_skips(unet_3d(), LFAMConfig(first_level=2))


def test_even_kernels_are_refused(unet_3d: Callable[..., nn.Module]) -> None:
    network = unet_3d(kernel_sizes=[[1, 3, 3], [2, 3, 3], [3, 3, 3]])
    with pytest.raises(ValueError, match=r"kernel size \[2, 3, 3\] has an even entry"):
        align_skips(network)
    assert not isinstance(network.decoder, AlignedUNetDecoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_level": -1}, "first_level is -1"),
        ({"offset_lr_factor": -0.5}, "offset_lr_factor is -0.5"),
        ({"offset_lr_factor": math.nan}, "offset_lr_factor is nan"),
        ({"finest": "none"}, "finest is 'none'"),
        ({"reduction": 0}, "reduction is 0"),
        ({"max_offset": 0.0}, "max_offset is 0.0"),
        ({"max_offset": math.inf}, "max_offset is inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LFAMConfig(**options)


def deeper() -> dict[str, object]:
    return {
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    }
