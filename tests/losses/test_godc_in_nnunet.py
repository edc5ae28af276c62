"""GODC in the place of nnU-Net's Dice loss: compounds, ignore label, deep supervision, autocast, torch.compile."""

from typing import get_args

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1

from nnunet_godc.losses import GODCConfig, GODCLoss
from nnunet_godc.losses.godc import Normalization

NORMALIZATIONS = get_args(Normalization)
SIZES = [(9, 7), (6, 5, 4)]
DICE = GODCConfig(exponent=0.0)
IGNORE = 3


def godc_options(batch_dice=False, config=None, do_bg=False, classes=None):
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": do_bg, "ddp": False}
    return options if config is None else {**options, "config": config, "classes": classes}


def label_compound(config=None, ignore_label=None, **options):
    """nnU-Net's compound for labels as its trainer builds it, with GODC where a config is given."""
    dice_class = MemoryEfficientSoftDiceLoss if config is None else GODCLoss
    return DC_and_CE_loss(godc_options(config=config, **options), {}, ignore_label=ignore_label, dice_class=dice_class)


def region_compound(config=None, ignore_label=False, **options):
    """nnU-Net's compound for regions as its trainer builds it, with GODC where a config is given."""
    dice_class = MemoryEfficientSoftDiceLoss if config is None else GODCLoss
    options = godc_options(config=config, do_bg=True, **options)
    return DC_and_BCE_loss({}, options, use_ignore_label=ignore_label, dice_class=dice_class)


def pyramid(random_batch, classes=3, sizes=((8, 8, 8), (4, 4, 4), (2, 2, 2)), seed=0):
    """Logits and labels per resolution, finest first, as deep supervision has them."""
    batches = [random_batch(classes=classes, size=size, seed=seed + level) for level, size in enumerate(sizes)]
    return [logits for logits, _ in batches], [labels for _, labels in batches]


def assert_identical(first, second):
    """Bit by bit, so that a NaN equals a NaN and nothing is tolerated."""
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


class TestExponentZero:
    """Is nnU-Net's Dice loss to the last bit, in value and gradient."""

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("do_bg", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("layout", ["labels", "labels without channel", "one-hot", "regions"])
    @pytest.mark.parametrize("smooth", [1e-5, 0.0, 1.0])
    def test_alone(self, random_batch, differentiate, size, do_bg, masked, layout, smooth):
        logits, labels = random_batch(batch=3, classes=4, size=size)
        mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
        target = {
            "labels": labels.float(),
            "labels without channel": labels[:, 0],
            "one-hot": torch.cat([labels == label for label in range(4)], dim=1),
            "regions": torch.cat([labels >= label for label in range(4)], dim=1).to(torch.int16),
        }[layout]
        nonlinearity = torch.sigmoid if layout == "regions" else softmax_helper_dim1
        arguments = {"apply_nonlin": nonlinearity, "batch_dice": False, "do_bg": do_bg, "smooth": smooth, "ddp": False}
        assert_identical(
            differentiate(GODCLoss(**arguments, config=DICE), logits, target, mask),
            differentiate(MemoryEfficientSoftDiceLoss(**arguments), logits, target, mask),
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, random_batch, differentiate, dtype):
        logits, labels = random_batch(batch=2, size=(16, 16, 16), dtype=dtype)
        arguments = {"apply_nonlin": torch.sigmoid, "do_bg": True, "smooth": 1e-5}
        assert_identical(
            differentiate(GODCLoss(**arguments, config=DICE), logits, labels),
            differentiate(MemoryEfficientSoftDiceLoss(**arguments), logits, labels),
        )

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("ignore_label", [None, IGNORE])
    def test_beside_cross_entropy(self, random_batch, differentiate, size, ignore_label):
        logits, labels = random_batch(classes=4, size=size)
        logits = logits[:, :3]
        labels = labels if ignore_label else labels.clamp_max(2)
        assert (labels == IGNORE).any() == (ignore_label is not None)
        assert_identical(
            differentiate(label_compound(DICE, ignore_label), logits, labels.float()),
            differentiate(label_compound(None, ignore_label), logits, labels.float()),
        )

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("ignore_label", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int16])
    def test_beside_binary_cross_entropy(self, random_batch, differentiate, size, ignore_label, dtype):
        logits, labels = random_batch(classes=4, size=size)
        regions = [labels >= 1, labels == 2] + [labels == IGNORE] * ignore_label
        target = torch.cat(regions, dim=1).to(dtype)
        assert_identical(
            differentiate(region_compound(DICE, ignore_label), logits[:, :2], target),
            differentiate(region_compound(None, ignore_label), logits[:, :2], target),
        )


class TestCompound:
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_adds_godc_to_cross_entropy(self, random_batch, normalization):
        logits, labels = random_batch()
        config = GODCConfig(normalization=normalization)
        alone = GODCLoss(softmax_helper_dim1, do_bg=False, config=config, classes=3)
        compound = label_compound(config, classes=3)
        cross_entropy = torch.nn.functional.cross_entropy(logits, labels[:, 0])
        torch.testing.assert_close(compound(logits, labels), cross_entropy + alone(logits, labels))

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_does_not_pool_the_batch_where_the_plan_says_batch_dice(self, random_batch, differentiate, normalization):
        logits, labels = random_batch(batch=3)
        config = GODCConfig(normalization=normalization)
        pooled, per_sample = (
            differentiate(label_compound(config, batch_dice=batch_dice, classes=3).dc, logits, labels)
            for batch_dice in (True, False)
        )
        assert_identical(pooled, per_sample)
        for batch_dice in (True, False):
            _, gradient = differentiate(label_compound(batch_dice=batch_dice).dc, logits, labels)
            assert (gradient - pooled[1]).norm() > 0.02 * gradient.norm()

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_nothing_flows_from_voxels_with_the_ignore_label(self, random_batch, differentiate, normalization):
        logits, labels = random_batch(classes=4)
        logits = logits[:, :3]
        ignored = (labels == IGNORE).expand_as(logits)
        config = GODCConfig(normalization=normalization, detach=False)
        value, gradient = differentiate(label_compound(config, IGNORE, classes=3), logits, labels)
        assert gradient[ignored].eq(0).all()
        assert gradient[~ignored].ne(0).any()
        elsewhere = torch.where(ignored, -logits, logits)
        assert differentiate(label_compound(config, IGNORE, classes=3), elsewhere, labels)[0] == value

    def test_deep_supervision_is_the_weighted_sum_over_resolutions(self, random_batch):
        outputs, targets = pyramid(random_batch)
        weights = [4 / 6, 2 / 6, 0.0]
        compound = label_compound(GODCConfig())
        expected = sum(weight * compound(*level) for weight, *level in zip(weights, outputs, targets, strict=True))
        torch.testing.assert_close(DeepSupervisionWrapper(compound, weights)(outputs, targets), expected)

    def test_deep_supervision_adds_every_resolution_with_a_weight_to_the_running_mean(self, random_batch):
        outputs, targets = pyramid(random_batch)
        compound = label_compound(GODCConfig(normalization="running"), classes=3)
        DeepSupervisionWrapper(compound, [4 / 6, 2 / 6, 0.0])(outputs, targets)
        assert compound.dc.batches_seen.item() == 2


class TestAutocast:
    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_in_bfloat16_the_loss_stays_float32(self, random_batch, normalization, regions):
        image, labels = random_batch(classes=3, size=(8, 8, 8))
        torch.manual_seed(0)
        network = torch.nn.Conv3d(3, 3, 3, padding=1)
        config = GODCConfig(normalization=normalization)
        target = torch.cat([labels >= label for label in range(3)], dim=1) if regions else labels
        build = region_compound if regions else label_compound
        results = []
        for enabled in (True, False):
            network.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                logits = network(image)
                loss = build(config, classes=3)(logits, target)
            assert logits.dtype == (torch.bfloat16 if enabled else torch.float32)
            assert loss.dtype == torch.float32
            loss.backward()
            results.append((loss.detach(), network.weight.grad.clone()))
        torch.testing.assert_close(*results, rtol=0.05, atol=2e-3)

    def test_sums_of_a_large_float16_patch_stay_finite(self):
        logits = torch.zeros((1, 2, 128, 128, 128), dtype=torch.float16, requires_grad=True)
        target = torch.zeros((1, 2, 128, 128, 128), dtype=torch.bool)
        target[:, :, :64] = True
        loss = GODCLoss(torch.sigmoid, do_bg=True, config=GODCConfig(normalization="l2"))(logits, target)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(-0.5)  # I = n / 4 and U = 3 n / 4 of n voxels
        loss.backward()
        assert logits.grad.isfinite().all()


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
class TestCompiled:
    """torch.compile of the Dice term, as nnU-Net's trainer does it."""

    @staticmethod
    def compiled(loss):
        loss.dc = torch.compile(loss.dc, backend="aot_eager", fullgraph=True)
        return loss

    @pytest.mark.parametrize(
        "config",
        [
            *(GODCConfig(normalization=normalization) for normalization in NORMALIZATIONS),
            GODCConfig(normalization="l2", detach=False),
        ],
        ids=lambda config: f"{config.normalization}-{'constant' if config.detach else 'through'}",
    )
    def test_agrees_with_eager_at_the_shapes_of_deep_supervision(self, random_batch, config):
        eager, compiled = label_compound(config, classes=3), self.compiled(label_compound(config, classes=3))
        for seed, sizes in enumerate([((8, 8, 8), (4, 4, 4), (2, 2, 2)), ((8, 4, 6), (4, 2, 3))]):
            outputs, targets = pyramid(random_batch, sizes=sizes, seed=seed)
            results = []
            for loss in (eager, compiled):
                leaves = [output.clone().requires_grad_() for output in outputs]
                value = DeepSupervisionWrapper(loss, [0.5, 0.3, 0.2][: len(sizes)])(leaves, targets)
                results.append((value.detach(), torch.autograd.grad(value, leaves)))
            torch.testing.assert_close(*results)

    def test_agrees_with_eager_in_2d_and_3d(self, random_batch, differentiate):
        eager, compiled = label_compound(GODCConfig()), self.compiled(label_compound(GODCConfig()))
        for size in ((12, 10), (6, 5), (4, 6, 8)):
            batch = random_batch(size=size)
            torch.testing.assert_close(differentiate(compiled, *batch), differentiate(eager, *batch))

    @pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
    def test_agrees_with_eager_for_every_exponent(self, random_batch, differentiate, exponent):
        logits, labels = random_batch(classes=4)
        config = GODCConfig(exponent=exponent)
        compiled = self.compiled(label_compound(config, IGNORE))
        expected = differentiate(label_compound(config, IGNORE), logits[:, :3], labels)
        torch.testing.assert_close(differentiate(compiled, logits[:, :3], labels), expected)

    def test_regions_agree_with_eager(self, random_batch, differentiate):
        logits, labels = random_batch(classes=4)
        target = torch.cat([labels >= 1, labels == 2, labels == IGNORE], dim=1)
        compiled = self.compiled(region_compound(GODCConfig(), ignore_label=True))
        expected = differentiate(region_compound(GODCConfig(), ignore_label=True), logits[:, :2], target)
        torch.testing.assert_close(differentiate(compiled, logits[:, :2], target), expected)

    def test_running_mean_moves_in_training_and_stands_still_in_evaluation(self, random_batch):
        config = GODCConfig(normalization="running")
        eager, compiled = label_compound(config, classes=3), self.compiled(label_compound(config, classes=3))
        original = compiled.dc._orig_mod
        for seed in range(3):
            batch = random_batch(seed=seed)
            torch.testing.assert_close(compiled(*batch), eager(*batch))
            torch.testing.assert_close(original.running_union, eager.dc.running_union)
        compiled.eval()
        eager.eval()
        batch = random_batch(seed=3)
        torch.testing.assert_close(compiled(*batch), eager(*batch))
        assert original.batches_seen.item() == 3
