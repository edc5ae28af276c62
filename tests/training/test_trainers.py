"""The trainers and the mixins that they are made of, inside nnU-Net's trainer."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_godc import trainers
from nnunet_godc.alignment import AlignedUNetDecoder, LFAMConfig
from nnunet_godc.errors import UserError
from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.training import GODCMixin, LFAMMixin, PaperRecipeMixin, ScheduleMixin, with_epochs

LABELS = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "liver": [1, 2], "tumour": 2}
# those of other networks have a file of tests of their own
BASE_TRAINERS = [name for name in trainers.__all__ if not re.search("epochs$|Evidence|Trainer.*Net$|UNetPlus", name)]

MakeTrainer = Callable[..., Any]


def log_of(trainer: nnUNetTrainer) -> str:
    return Path(trainer.log_file).read_text()


def compound_of(trainer: nnUNetTrainer) -> Any:
    return trainer.loss.loss


class Running(GODCMixin, nnUNetTrainer):
    godc = GODCConfig(normalization="running")


class Everything(GODCMixin, LFAMMixin, nnUNetTrainer):
    """What the README shows as a variant of one's own."""

    godc = GODCConfig(normalization="l2", exponent=0.5)
    lfam = LFAMConfig(first_level=1, offset_lr_factor=0.1)


def test_all_promised_trainers_are_there() -> None:
    promised = {
        "nnUNetTrainerGODC",
        "nnUNetTrainerGODCOnly",
        "nnUNetTrainerLFAM",
        "nnUNetTrainerLFAMShared",
        "nnUNetTrainerGODCLFAM",
        "nnUNetTrainerGODCLFAMShared",
        "nnUNetTrainerGODCSquared",
        "nnUNetTrainerGODCLFAMGuided",
        "nnUNetTrainerGODCLFAMLite",
        "nnUNetTrainerGODCLFAMPaper",
    }
    short = {f"{name}_{epochs}epochs" for name in promised for epochs in (50, 100, 250)}
    assert promised | short <= set(trainers.__all__)
    for name in trainers.__all__:
        trainer = getattr(trainers, name)
        assert trainer.__name__ == name
        assert trainer.__doc__


@pytest.mark.parametrize("name", trainers.__all__)
def test_no_trainer_adds_a_parameter_to_nnunets_constructor(name: str) -> None:
    ours, stock = inspect.signature(getattr(trainers, name)), inspect.signature(nnUNetTrainer)
    assert list(ours.parameters) == list(stock.parameters)


@pytest.mark.parametrize("name", BASE_TRAINERS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_trainer_makes_a_training_and_a_validation_step(
    make_trainer: MakeTrainer, random_batch: Callable[..., dict[str, Any]], name: str, configuration: str
) -> None:
    trainer = make_trainer(getattr(trainers, name), configuration)
    trainer.initialize()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.on_train_epoch_start()
    first = trainer.train_step(random_batch(trainer))["loss"]
    trainer.train_step(random_batch(trainer))  # the offsets see a gradient once the kernels are no longer a delta
    after = trainer.network.state_dict()
    assert first == first  # not a NaN
    assert not any(value.isnan().any() for value in after.values())
    assert any(not after[key].equal(before[key]) for key in before)
    if "LFAM" in name:
        moved = [key for key in before if ".alignment." in key and not after[key].equal(before[key])]
        assert any("offset" in key for key in moved)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        assert "tp_hard" in trainer.validation_step(random_batch(trainer))


@pytest.mark.parametrize("configuration", ["3d_resenc", "3d_lowres", "3d_cascade_fullres", "3d_one_sample"])
def test_the_other_configurations_train_too(
    make_trainer: MakeTrainer, random_batch: Callable[..., dict[str, Any]], configuration: str
) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODCLFAM, configuration)
    trainer.initialize()
    assert trainer.num_input_channels == (3 if "cascade" in configuration else 1)
    trainer.on_train_epoch_start()
    assert trainer.train_step(random_batch(trainer))["loss"] < 10


@pytest.mark.parametrize("labels", [REGIONS, {**REGIONS, "ignore": 3}, {"background": 0, "liver": 1, "ignore": 2}])
def test_regions_and_ignore_label(make_trainer: MakeTrainer, labels: dict[str, Any]) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODC, labels=labels)
    trainer.initialize()
    term = compound_of(trainer).dc
    regions = "tumour" in labels
    assert isinstance(term, GODCLoss)
    assert term.do_bg is regions
    assert term.apply_nonlin is (
        torch.sigmoid if regions else type(compound_of(trainer)).__init__.__globals__["softmax_helper_dim1"]
    )
    channels = trainer.label_manager.num_segmentation_heads
    size = trainer.configuration_manager.patch_size
    logits = torch.randn(2, channels, *size, requires_grad=True)
    if regions:
        target = torch.zeros(2, channels + ("ignore" in labels), *size)
        target[:, :, :4] = 1
        ignored = slice(None, 4) if "ignore" in labels else slice(0, 0)
    else:
        target = torch.zeros(2, 1, *size)
        target[:, :, :4] = 2
        ignored = slice(None, 4)
    compound_of(trainer)(logits, target).backward()
    assert logits.grad[:, :, ignored].eq(0).all()
    assert logits.grad[:, :, 4:].abs().sum() > 0


def test_the_loss_is_nnunets_with_another_dice_term(make_trainer: MakeTrainer) -> None:
    stock, ours = make_trainer(nnUNetTrainer), make_trainer(trainers.nnUNetTrainerGODC)
    stock.initialize()
    ours.initialize()
    assert type(ours.loss) is type(stock.loss)
    assert ours.loss.weight_factors == stock.loss.weight_factors
    assert isinstance(compound_of(ours), type(compound_of(stock)))
    assert compound_of(ours).weight_ce == 1
    assert ours.loss.loss.dc.smooth == stock.loss.loss.dc.smooth


def test_per_sample_unions_although_the_plan_says_batch_dice(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODC, batch_dice=True)
    trainer.initialize()
    logits = torch.zeros(2, 3, 8, 16, 16, requires_grad=True)
    target = torch.zeros(2, 1, 8, 16, 16)
    target[0, :, :4] = 1
    target[1, :, 0, 0, :2] = 1
    compound_of(trainer).dc(logits, target).backward()
    trainer.configuration_manager.configuration["batch_dice"] = False
    apart = trainer._build_loss().loss.dc
    again = torch.zeros_like(logits).requires_grad_()
    apart(again, target).backward()
    assert logits.grad.equal(again.grad)
    assert "batch_dice: true" in log_of(trainer)


def test_godc_alone_leaves_cross_entropy_out(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODCOnly)
    trainer.initialize()
    logits = torch.randn(2, 3, 8, 16, 16)
    target = torch.randint(3, (2, 1, 8, 16, 16)).float()
    torch.testing.assert_close(compound_of(trainer)(logits, target), compound_of(trainer).dc(logits, target))
    assert "cross-entropy has weight 0" in log_of(trainer)


@pytest.mark.parametrize("fused", [True, False])
def test_the_loss_is_compiled_where_nnunet_compiles_its_dice_term(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    monkeypatch.setattr(Everything, "godc_fused", fused)
    trainer = make_trainer(Everything)
    trainer.initialize()
    dice = compound_of(trainer).dc
    if fused:
        assert trainer.loss._compiled_call_impl is not None
    else:
        assert trainer.loss._compiled_call_impl is None
        assert isinstance(dice, OptimizedModule)
        dice = dice._orig_mod
    assert isinstance(dice, GODCLoss)
    assert isinstance(trainer.network._orig_mod.decoder, AlignedUNetDecoder)
    trainer.on_validation_epoch_start()
    assert not dice.training
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network._orig_mod.decoder.deep_supervision is False


class OneAfterTheOther(Running):
    godc_fused = False


@pytest.mark.parametrize("labels", [LABELS, {**REGIONS, "ignore": 3}])
def test_one_pass_trains_as_one_term_after_the_other(
    make_trainer: MakeTrainer, random_batch: Callable[..., Any], labels: dict[str, Any]
) -> None:
    steps = []
    for trainer_class in (Running, OneAfterTheOther):
        trainer = make_trainer(trainer_class, labels=labels)
        torch.manual_seed(0)
        trainer.initialize()
        trainer.on_train_epoch_start()
        batch = random_batch(trainer)
        losses = [float(trainer.train_step(batch)["loss"]) for _ in range(3)]
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            losses.append(float(trainer.validation_step(batch)["loss"]))
        steps.append((losses, compound_of(trainer).dc.state_dict()))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-4)


def test_the_running_mean_goes_from_one_way_of_computing_to_the_other(
    make_trainer: MakeTrainer, random_batch: Callable[..., Any], tmp_path: Path
) -> None:
    for first, second in ((Running, OneAfterTheOther), (OneAfterTheOther, Running)):
        trainer = make_trainer(first)
        trainer.initialize()
        trainer.train_step(random_batch(trainer))
        trainer.logger.log("train_losses", 1.0, 0)
        trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        again = make_trainer(second)
        again.initialize()
        again.load_own_state(torch.load(tmp_path / "checkpoint.pth", weights_only=False))
        torch.testing.assert_close(compound_of(again).dc.state_dict(), compound_of(trainer).dc.state_dict())


def test_the_log_says_how_the_loss_is_computed(make_trainer: MakeTrainer) -> None:
    class Dice(GODCMixin, nnUNetTrainer):
        godc = GODCConfig(exponent=0)

    for trainer_class, words in (
        (Running, "in one pass"),
        (OneAfterTheOther, "one after the other"),
        (Dice, "one after"),
    ):
        trainer = make_trainer(trainer_class)
        trainer.initialize()
        assert log_of(trainer).count(f"GODC and cross-entropy are computed {words}") == 1


def test_a_loss_without_a_dice_term_is_refused(make_trainer: MakeTrainer) -> None:
    class Unfit(GODCMixin, nnUNetTrainerCELoss):
        pass

    with pytest.raises(UserError, match="RobustCrossEntropyLoss has no Dice term that GODC could replace"):
        make_trainer(Unfit).initialize()


def test_the_log_says_once_what_is_in_effect(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODCLFAM)
    trainer.initialize()
    log = log_of(trainer)
    assert log.count("GODC in the place of the Dice term, GODCConfig(normalization='mean', exponent=1.0") == 1
    (line,) = re.findall(r"LFAM on .*", log)
    assert "level 0 (4 channels, taps 1x3x3), level 1 (8 channels, taps 3x3x3)" in line
    alignment = trainer.network.decoder.alignment
    assert f"{sum(p.numel() for p in alignment.parameters()):,} parameters" in line
    voxels = 8 * 16 * 16
    elements = 2 * (voxels * (18 + 4) + voxels // 8 * (81 + 8))  # two samples; offsets and outputs of both levels
    assert f"{elements * 4 / 2**20:,.0f} MB of feature maps for a batch of 2" in line
    assert "The batch is one sample" not in log


def test_a_batch_of_one_sample_is_pointed_out_once(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerGODC, "3d_one_sample")
    trainer.initialize()
    assert log_of(trainer).count("The batch is one sample") == 1
    running = make_trainer(Running, "3d_one_sample")
    running.initialize()
    assert "The batch is one sample" not in log_of(running)


def test_the_network_follows_from_the_class_without_an_instance(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(Everything)
    trainer.initialize()
    network = Everything.build_network_architecture(
        PlansManager(trainer.plans_manager.plans), trainer.configuration_manager, 1, 3, enable_deep_supervision=False
    )
    network.load_state_dict(trainer.network.state_dict())
    assert list(network.decoder.alignment.levels) == ["1"]


def test_offsets_learn_at_their_own_rate_whatever_the_epoch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(Everything)
    trainer.initialize()
    for epoch in (0, 500, 900):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        network, offsets = trainer.optimizer.param_groups
        assert offsets["lr"] == pytest.approx(0.1 * network["lr"])
        assert network["lr"] == pytest.approx(1e-2 * (1 - epoch / 1000) ** 0.9)
    assert len(offsets["params"]) == 2
    grouped = [*network["params"], *offsets["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in trainer.network.parameters()}
    assert len(grouped) == len({id(p) for p in grouped})


def test_one_learning_rate_leaves_nnunets_optimizer_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerLFAM)
    trainer.initialize()
    assert len(trainer.optimizer.param_groups) == 1


def test_mixins_combine_with_nnunets_own_variants(make_trainer: MakeTrainer) -> None:
    class WithAdam(GODCMixin, LFAMMixin, nnUNetTrainerAdam):
        lfam = LFAMConfig(offset_lr_factor=0.5)

    trainer = make_trainer(WithAdam)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert len(trainer.optimizer.param_groups) == 2


@pytest.mark.parametrize("epochs", [50, 100, 250])
def test_short_schedules(make_trainer: MakeTrainer, epochs: int) -> None:
    trainer = make_trainer(getattr(trainers, f"nnUNetTrainerGODC_{epochs}epochs"))
    assert trainer.num_epochs == epochs
    assert trainer.num_iterations_per_epoch == 250


def test_a_schedule_of_ones_own(make_trainer: MakeTrainer) -> None:
    class Quick(ScheduleMixin, nnUNetTrainer):
        iterations_per_epoch = 7
        validation_iterations_per_epoch = 3

    trainer = make_trainer(with_epochs(Quick, 5, __name__))
    assert type(trainer).__name__ == "Quick_5epochs"
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (5, 7, 3)
    assert set(trainer.my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}


class TestPaperRecipe:
    """Section III.C of the paper."""

    def test_adam_at_a_constant_rate_with_batches_of_two(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper, batch_size=12)
        trainer.initialize()
        assert type(trainer.optimizer) is torch.optim.Adam
        for epoch in (0, 999):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            assert trainer.optimizer.param_groups[0]["lr"] == 2e-4
        assert trainer.batch_size == 2
        assert trainer.num_epochs == 1000
        assert trainer.plans_manager.plans["configurations"]["3d_fullres"]["batch_size"] == 12  # the user's plans stay

    def transforms(self, trainer: nnUNetTrainer, **changes: Any) -> list[Any]:
        rotation, dummy_2d, _, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        arguments = {
            "patch_size": trainer.configuration_manager.patch_size,
            "rotation_for_DA": rotation,
            "deep_supervision_scales": None,
            "mirror_axes": mirror,
            "do_dummy_2d_data_aug": dummy_2d,
        }
        return trainer.get_training_transforms(**(arguments | changes)).transforms

    def test_only_scaling_translation_and_quarter_turns_augment(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper)
        transforms = self.transforms(trainer)
        augmenting = [
            t
            for t in transforms
            if isinstance(t, SpatialTransform | Rot90Transform | RandomTransform | MirrorTransform)
        ]
        spatial, *turns = augmenting
        assert isinstance(spatial, SpatialTransform)
        assert all(isinstance(turn, Rot90Transform) for turn in turns)
        assert (spatial.p_rotation, spatial.p_scaling, spatial.scaling) == (0, 1, (0.7, 1.3))
        assert trainer.inference_allowed_mirroring_axes is None

    def test_a_cascade_keeps_the_corruption_of_its_input(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper)
        transforms = self.transforms(trainer, is_cascaded=True, foreground_labels=[1, 2])
        kept = [type(t.transform).__name__ for t in transforms if isinstance(t, RandomTransform)]
        assert kept == [
            "ApplyRandomBinaryOperatorTransform",
            "RemoveRandomConnectedComponentFromOneHotEncodingTransform",
        ]
        assert MultiplicativeBrightnessTransform.__name__ not in kept

    def test_translation_reaches_a_fifth_of_the_patch_and_no_further(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper)
        (spatial,) = [t for t in self.transforms(trainer) if isinstance(t, SpatialTransform)]
        patch = torch.tensor(trainer.configuration_manager.patch_size)
        _, _, loaded, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        image = torch.zeros(1, *loaded)
        centres = torch.tensor([spatial.get_parameters(image=image)["center_location_in_pixels"] for _ in range(400)])
        shift = (centres - torch.tensor(image.shape[1:]) / 2).abs() / patch
        assert shift.max() <= 0.2 + 1e-6
        assert shift.amax(0).min() > 0.18

    @pytest.mark.parametrize(
        ("patch", "allowed"),
        [
            ([8, 16, 16], {frozenset({0, 1}): (0, 2), frozenset({0, 2}): (0, 2), frozenset({1, 2}): (0, 1, 2, 3)}),
            ([16, 12], {frozenset({0, 1}): (0, 2)}),
            ([2, 16, 16], {frozenset({1, 2}): (0, 1, 2, 3)}),  # so thin that nnU-Net augments it in 2D
        ],
    )
    def test_turns_keep_the_shape_of_the_patch(
        self, make_trainer: MakeTrainer, patch: list[int], allowed: dict[frozenset[int], tuple[int, ...]]
    ) -> None:
        configuration = "2d" if len(patch) == 2 else "3d_fullres"
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper, configuration, patch_size=patch)
        turns = [t for t in self.transforms(trainer) if isinstance(t, Rot90Transform)]
        assert {frozenset(t.allowed_axes): t.num_rot_per_combination for t in turns} == allowed

    @pytest.mark.parametrize("patch", [[8, 16, 16], [2, 16, 16], [16, 12]])
    def test_image_and_labels_come_out_in_the_patch_and_together(
        self, make_trainer: MakeTrainer, patch: list[int]
    ) -> None:
        configuration = "2d" if len(patch) == 2 else "3d_fullres"
        trainer = make_trainer(trainers.nnUNetTrainerGODCLFAMPaper, configuration, patch_size=patch)
        rotation, dummy_2d, loaded, mirror = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        pipeline = trainer.get_training_transforms(patch, rotation, None, mirror, dummy_2d)
        block = torch.zeros(1, *(int(extent) for extent in loaded))
        block[(0, *(slice(extent // 2, None) for extent in block.shape[1:]))] = 1
        overlaps = []
        for _ in range(10):
            result = pipeline(image=block.clone(), segmentation=block.clone().to(torch.int16))
            assert result["image"].shape == result["segmentation"].shape == (1, *patch)
            inside, outside = result["image"] > 0.5, result["segmentation"] == 1
            overlaps.append((inside == outside).float().mean().item())
        assert min(overlaps) > 0.9


class TestCheckpoints:
    """What nnU-Net's checkpoints hold of ours, and what happens to those that do not fit."""

    def trained(self, make_trainer: MakeTrainer, trainer_class: type, random_batch: Callable[..., Any]) -> Any:
        trainer = make_trainer(trainer_class)
        trainer.initialize()
        trainer.on_train_epoch_start()
        trainer.train_step(random_batch(trainer))
        trainer.logger.log("train_losses", 1.0, 0)
        return trainer

    def test_the_running_mean_survives_a_checkpoint(
        self, make_trainer: MakeTrainer, random_batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        trainer = self.trained(make_trainer, Running, random_batch)
        state = {key: value.clone() for key, value in compound_of(trainer).dc.state_dict().items()}
        assert state["batches_seen"] > 0
        file = str(tmp_path / "checkpoint_latest.pth")
        trainer.save_checkpoint(file)
        again = make_trainer(Running)
        again.load_checkpoint(file)
        for key, value in compound_of(again).dc.state_dict().items():
            assert value.equal(state[key])
        assert not list(tmp_path.glob("*.part"))

    def test_validation_does_not_move_the_running_mean(
        self, make_trainer: MakeTrainer, random_batch: Callable[..., Any]
    ) -> None:
        trainer = self.trained(make_trainer, Running, random_batch)
        before = compound_of(trainer).dc.running_union.clone()
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(random_batch(trainer))
        assert compound_of(trainer).dc.running_union.equal(before)
        trainer.on_train_epoch_start()
        trainer.train_step(random_batch(trainer))
        assert not compound_of(trainer).dc.running_union.equal(before)

    def test_other_losses_add_nothing_to_the_checkpoint(
        self, make_trainer: MakeTrainer, random_batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        file = tmp_path / "checkpoint.pth"
        self.trained(make_trainer, trainers.nnUNetTrainerGODC, random_batch).save_checkpoint(str(file))
        assert "godc_state" not in torch.load(file, weights_only=False)

    @pytest.mark.parametrize(
        ("saved", "loading"),
        [
            (nnUNetTrainer, trainers.nnUNetTrainerGODCLFAM),
            (trainers.nnUNetTrainerLFAM, trainers.nnUNetTrainerGODC),
            (trainers.nnUNetTrainerLFAMShared, trainers.nnUNetTrainerLFAM),
            (trainers.nnUNetTrainerGODCLFAMGuided, trainers.nnUNetTrainerGODCLFAM),
        ],
    )
    def test_a_checkpoint_of_another_variant_is_refused_before_anything_is_loaded(
        self, make_trainer: MakeTrainer, random_batch: Callable[..., Any], tmp_path: Path, saved: type, loading: type
    ) -> None:
        file = str(tmp_path / "checkpoint.pth")
        self.trained(make_trainer, saved, random_batch).save_checkpoint(file)
        trainer = make_trainer(loading)
        trainer.initialize()
        before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        with pytest.raises(
            UserError, match=f"was trained by {saved.__name__} and does not fit {loading.__name__} "
        ) as e:
            trainer.load_checkpoint(file)
        assert f"use -tr {saved.__name__}" in str(e.value)
        assert all(value.equal(before[key]) for key, value in trainer.network.state_dict().items())

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
    def test_a_broken_checkpoint_is_named(
        self, make_trainer: MakeTrainer, tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "checkpoint.pth"
        if content is None:
            torch.save({"weights": {}}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(file))):
            make_trainer(trainers.nnUNetTrainerGODCLFAM).load_checkpoint(str(file))


def test_plans_whose_network_lfam_cannot_patch_are_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(trainers.nnUNetTrainerLFAM)
    network = trainer.configuration_manager.configuration["architecture"]
    network["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualUNet"
    network["arch_kwargs"]["n_blocks_per_stage"] = network["arch_kwargs"].pop("n_conv_per_stage")
    with pytest.raises(TypeError, match="ResidualUNet with the decoder UNetResDecoder pass"):
        trainer.initialize()


def test_the_paper_mixin_is_an_ordinary_mixin(make_trainer: MakeTrainer) -> None:
    class StockByThePaper(PaperRecipeMixin, nnUNetTrainer):
        pass

    trainer = make_trainer(StockByThePaper)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert isinstance(trainer.network, nn.Module)
