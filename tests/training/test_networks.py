"""The networks that the paper compares with, in nnU-Net's trainer, alone and with GODC and LFAM."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunet_godc import trainers
from nnunet_godc.alignment import alignment_of
from nnunet_godc.errors import UserError
from nnunet_godc.losses import GODCLoss
from nnunet_godc.training import networks
from nnunet_godc.training.checkpoint import describe_checkpoint
from nnunet_godc.training.networks import NetworkMixin
from nnunet_godc.training.warm_start import warm_start

MakeTrainer = Callable[..., Any]

needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="MONAI is an extra: pip install 'nnunet-godc[comparison]'"
)
CE_NET_PATCH = {"patch_size": [64, 32]}
CASES = [
    *(pytest.param(name, place, {}) for name in ("UNet", "ResUNet") for place in ("2d", "3d_fullres")),
    *(
        pytest.param(name, place, {}, marks=needs_monai)
        for name in ("UNetPlusPlus", "AttentionUNet")
        for place in ("2d", "3d_fullres")
    ),
    pytest.param("CENet", "2d", CE_NET_PATCH),
]
every_network = pytest.mark.parametrize(("network", "configuration", "changes"), CASES)


def trainer_class(*parts: str) -> type[NetworkMixin]:
    found: type[NetworkMixin] = recursive_find_trainer_class_by_name(f"nnUNetTrainer{''.join(parts)}")
    return found


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


@pytest.fixture(autouse=True)
def _no_weights_of_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "imagenet_weights", lambda: tmp_path / "resnet34.pth")


@every_network
@pytest.mark.parametrize("additions", ["", "GODCLFAM"])
def test_a_step_moves_the_weights_and_prediction_loads_them(
    make_trainer: MakeTrainer,
    random_batch: Callable[..., dict[str, Any]],
    network: str,
    configuration: str,
    changes: dict[str, Any],
    additions: str,
) -> None:
    cls = trainer_class(network, additions)
    trainer = make_trainer(cls, configuration, **changes)
    trainer.initialize()
    before = copy.deepcopy(trainer.network.state_dict())
    trainer.on_train_epoch_start()
    batch = random_batch(trainer)
    for _ in range(2):  # the offsets see a gradient once the kernels are no longer a delta
        assert trainer.train_step(batch)["loss"] < 10
    after = trainer.network.state_dict()
    still = {name for name in after if after[name].equal(before[name]) and not name.endswith("num_batches_tracked")}
    # nnU-Net leaves the coarsest output of deep supervision out of the loss, hence its layer as it is
    assert all(re.search(r"seg_layers\.0|final_conv_0_1|upcat_0_1|num_batches|running", name) for name in still), still
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        assert "tp_hard" in trainer.validation_step(batch)

    # as nnU-Net's predictor does: from class and plans alone, without deep supervision
    predictor = cls.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    predictor.load_state_dict(after)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    with torch.no_grad():
        expected = trainer.network(batch["data"])
        assert predictor.eval()(batch["data"]).equal(expected)
    assert expected.shape == (2, 3, *trainer.configuration_manager.patch_size)
    trainer.set_deep_supervision_enabled(True)
    assert isinstance(trainer.network(batch["data"]), list) is trainer.enable_deep_supervision
    if additions:
        loss = trainer.loss.loss if isinstance(trainer.loss, DeepSupervisionWrapper) else trainer.loss
        assert isinstance(loss.dc, GODCLoss)
        assert len(alignment_of(trainer.network).levels) > 0
        assert "LFAM on" in log_of(trainer)


@every_network
def test_the_log_says_what_the_network_is(
    make_trainer: MakeTrainer, network: str, configuration: str, changes: dict[str, Any]
) -> None:
    trainer = make_trainer(trainer_class(network), configuration, **changes)
    trainer.initialize()
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    supervision = "without" if network in ("AttentionUNet", "CENet") else "with"
    assert f"Network: {type(trainer).title}, {parameters:,} parameters, {supervision} deep supervision." in log_of(
        trainer
    )
    assert trainer.enable_deep_supervision is (supervision == "with")
    told = {
        "UNet": "widths are those published, [64, 128, 256], not [4, 8, 8].",
        "ResUNet": "widths are those published, [64, 128, 256], not [4, 8, 8].",
        "UNetPlusPlus": "U-Net++ has five levels, the plans 3: the others reduce nothing.",
        "AttentionUNet": "kernels are 3 along every axis, where the plans have 1x3x3 in 1 stages.",
        "CENet": "widths, strides and kernels are those of ResNet-34, not the plans'.",
    }
    assert (told[network] in log_of(trainer)) is (network != "AttentionUNet" or configuration == "3d_fullres")


def deeper(stages: int, axes: int = 2) -> dict[str, Any]:
    """A planned network of so many stages, the last of which reduce one axis alone."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [8 * (stage + 1) for stage in range(stages)],
            "kernel_sizes": [[3] * axes] * stages,
            "strides": [[1] * axes, *([[2] * axes] * (stages - 2)), [1] * (axes - 1) + [2]],
        },
        "_kw_requires_import": [],
    }


@needs_monai
def test_unet_plus_plus_takes_widths_and_strides_of_the_first_five_stages(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerUNetPlusPlus, "2d", architecture=deeper(6), patch_size=[32, 64])
    trainer.initialize()
    widths = [trainer.network.get_submodule(name) for name in ("conv_0_0", *(f"conv_{i}_0.convs" for i in range(1, 5)))]
    assert [stage.conv_1.conv.out_channels for stage in widths] == [8, 16, 24, 32, 40]
    assert [trainer.network.get_submodule(f"conv_{i}_0.max_pooling").stride for i in range(1, 5)] == [(2, 2)] * 4
    assert "five levels, as U-Net++ has them, of the 6 of the plans" in log_of(trainer)


@needs_monai
def test_outputs_of_unet_plus_plus_are_supervised_the_last_node_most(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerUNetPlusPlus)
    trainer.initialize()
    assert trainer._get_deep_supervision_scales() == [[1.0] * 3] * 4
    assert list(trainer.loss.weight_factors) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    patch = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    outputs = trainer.network(patch)
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(patch).equal(outputs[0])


@needs_monai
def test_attention_unet_takes_widths_and_strides_and_normalises_each_sample(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerAttentionUNet, "2d", architecture=deeper(4), patch_size=[16, 64])
    trainer.initialize()
    assert list(trainer.network.channels) == [8, 16, 24, 32]
    assert trainer.network.strides == [(2, 2), (2, 2), (1, 2)]
    kinds = {type(module) for module in trainer.network.modules()}
    assert nn.InstanceNorm2d in kinds
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)


def test_the_published_unet_leaves_out_what_plans_have_beyond_its_stages(
    make_trainer: MakeTrainer, random_batch: Callable[..., dict[str, Any]]
) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerResUNet, "2d", architecture=deeper(6), patch_size=[32, 64])
    trainer.initialize()
    assert list(trainer.network.encoder.output_channels) == [64, 128, 256, 512]
    assert trainer._get_deep_supervision_scales() == [[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]]
    assert "4 stages, as published, of the 6 of the plans." in log_of(trainer)
    assert trainer.train_step(random_batch(trainer))["loss"] < 10


@pytest.mark.parametrize(
    ("name", "patch_size", "message"),
    [
        ("CENet", [56, 40], r"CE-Net reduces .* \[32, 32\], .* patch size \[56, 40\]; .* \[32, 32\] or \[64, 64\]"),
        ("CENet", [24, 64], r"patch size such as \[32, 64\]\."),
        ("UNet", [16, 18], r"reduces the axes of a patch by \[4, 4\], .* such as \[16, 16\] or \[16, 20\]"),
    ],
)
def test_patches_that_do_not_divide_are_refused_with_sizes_that_do(
    make_trainer: MakeTrainer, name: str, patch_size: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(trainer_class(name), "2d", patch_size=patch_size).initialize()


def test_ce_net_is_refused_in_3d(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match="CE-Net is a 2D network, and this configuration has 3 axes; train it with 2d"):
        make_trainer(trainers.nnUNetTrainerCENet, "3d_fullres").initialize()


@pytest.mark.parametrize("channels", [1, 3])
def test_ce_net_starts_from_imagenet_where_the_weights_are(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    from torchvision.models import resnet34

    resnet = resnet34(weights=None).eval()
    torch.save(resnet.state_dict(), networks.imagenet_weights())
    monkeypatch.setattr(
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.determine_num_input_channels", lambda *a: channels
    )
    trainer = make_trainer(trainers.nnUNetTrainerCENet, "2d", **CE_NET_PATCH)
    trainer.initialize()
    assert "the encoder starts from ImageNet's weights" in log_of(trainer)
    encoder = trainer.network.encoder.eval()
    assert encoder.layer4[2].conv2.weight.equal(resnet.layer4[2].conv2.weight)
    same = torch.randn(1, 1, 64, 32)
    torch.testing.assert_close(encoder.conv1(same.expand(1, channels, 64, 32)), resnet.conv1(same.expand(1, 3, 64, 32)))


def test_ce_net_starts_at_random_elsewhere_and_says_so(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerCENet, "2d", **CE_NET_PATCH)
    trainer.initialize()
    assert f"the encoder starts at random, since there is no {networks.imagenet_weights()}" in log_of(trainer)


def test_where_imagenet_weights_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", "/somewhere")
    assert networks.imagenet_weights() == Path("/somewhere/hub/checkpoints/resnet34-b627a593.pth")


def test_without_monai_the_extra_is_named(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"U-Net\+\+ comes from monai, .* pip install 'nnunet-godc\[comparison\]'"):
        make_trainer(trainers.nnUNetTrainerUNetPlusPlus).initialize()


def test_lfam_starts_from_a_checkpoint_of_the_same_network_without_it(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    # with CE-Net, whose weights stand beside LFAM's, where those of nnU-Net's networks stand above them
    stock = make_trainer(trainers.nnUNetTrainerCENet, "2d", **CE_NET_PATCH)
    stock.initialize()
    file, out = tmp_path / "stock.pth", tmp_path / "warm.pth"
    stock.save_checkpoint(str(file))
    added = warm_start(file, out, "nnUNetTrainerCENetGODCLFAM")
    weights = torch.load(out, weights_only=False)["network_weights"]
    assert added == sum(name.startswith("alignment.") for name in weights) > 0
    assert all(weights[name].equal(value) for name, value in stock.network.state_dict().items())
    assert "LFAM: yes" in describe_checkpoint(out)
    assert "LFAM: no" in describe_checkpoint(file)


def test_guided_offsets_are_refused_where_skips_pass_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainer_class("CENet", "LFAMGuided"), "2d", **CE_NET_PATCH)
    with pytest.raises(ValueError, match="guided offsets need the decoder's features"):
        trainer.initialize()
