"""The mathematics: configuration, weights, the gradient's closed form and what it says about object size."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1

from nnunet_godc.losses import GODCConfig, GODCLoss, dice_weight, soft_dice, soft_statistics, soft_union, union_norm
from nnunet_godc.losses.godc import Normalization

NORMALIZATIONS = get_args(Normalization)
WITHIN_BATCH = [name for name in NORMALIZATIONS if name != "running"]


def region_loss(smooth=0.0, classes=1, **options):
    """GODC on probabilities (B, C, ...) with all channels counting."""
    return GODCLoss(config=GODCConfig(smooth=smooth, include_background=True, **options), classes=classes)


def objects_of_one_iou(sizes, voxels, dtype=torch.float64):
    """Probabilities and reference (B, 1, 1, voxels) of objects of so many voxels, whose IoU is the same.

    Each object has probability 0.8 inside, and half as many voxels beside it have 0.6; then comes empty background.
    """
    position = torch.arange(voxels).view(1, 1, 1, voxels)
    size = torch.tensor(sizes).view(-1, 1, 1, 1)
    reference = (position < size).to(dtype)
    beside = (position >= size) & (position < size * 3 // 2)
    return 0.8 * reference + 0.6 * beside, reference


def closed_form(probabilities, reference, iou=None, union=None):
    """Eq. (7) with the factor 2 that it lacks; the batch's own IoU and union where none are given."""
    statistics = soft_statistics(probabilities, reference)
    shape = (*soft_union(statistics).shape, *[1] * (reference.dim() - 2))
    iou = (statistics.intersection / soft_union(statistics)).view(shape) if iou is None else iou
    union = soft_union(statistics).view(shape) if union is None else union
    return -2 * (reference - iou * (1 - reference)) / ((1 + iou) ** 2 * union)


class TestConfig:
    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            GODCConfig().exponent = 2

    def test_defaults_are_the_documented_ones(self):
        assert GODCConfig() == GODCConfig(
            normalization="mean", exponent=1.0, detach=True, smooth=1e-5, include_background=False, momentum=0.01
        )

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("normalization", "l3"),
            ("normalization", None),
            ("exponent", -math.inf),
            ("exponent", math.inf),
            ("exponent", math.nan),
            ("smooth", -1e-5),
            ("smooth", math.nan),
            ("momentum", 0.0),
            ("momentum", 1.5),
            ("momentum", math.nan),
        ],
    )
    def test_value_out_of_range_is_named_with_the_remedy(self, option, value):
        with pytest.raises(ValueError, match=rf"^GODC: {option} is .*; use .*\.$") as error:
            GODCConfig(**{option: value})
        assert str(value) in str(error.value)
        assert "\n" not in str(error.value)

    def test_running_mean_asks_for_the_number_of_classes(self):
        with pytest.raises(ValueError, match="number of classes"):
            GODCLoss(config=GODCConfig(normalization="running"))

    def test_arguments_of_nnunet_take_precedence_over_the_options(self):
        config = GODCConfig(smooth=0.5, include_background=True)
        assert (GODCLoss(config=config).smooth, GODCLoss(config=config).do_bg) == (0.5, True)
        loss = GODCLoss(smooth=0.0, do_bg=False, config=config)
        assert (loss.smooth, loss.do_bg) == (0.0, False)

    def test_printing_the_loss_shows_what_is_in_effect(self):
        text = repr(GODCLoss(config=GODCConfig(normalization="max", exponent=2.0)))
        assert "normalization='max'" in text
        assert "exponent=2.0" in text


class TestWeight:
    @pytest.mark.parametrize(
        ("normalization", "expected"),
        [("mean", [0.6, 1.4]), ("running", [0.6, 1.4]), ("l1", [0.3, 0.7]), ("max", [3 / 7, 1.0])],
    )
    def test_is_the_union_over_the_norm(self, normalization, expected):
        union = torch.tensor([[30.0], [70.0]])
        weight = dice_weight(union, union_norm(union, normalization), exponent=1.0)
        torch.testing.assert_close(weight, torch.tensor(expected)[:, None])

    def test_has_length_one_with_the_l2_norm(self):
        union = torch.tensor([[3.0, 1.0], [4.0, 1.0]])
        weight = dice_weight(union, union_norm(union, "l2"), exponent=1.0)
        torch.testing.assert_close(weight, torch.tensor([[0.6, math.sqrt(0.5)], [0.8, math.sqrt(0.5)]]))

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
    def test_is_raised_to_the_exponent(self, exponent):
        weight = dice_weight(torch.tensor([[10.0], [1000.0]]), torch.tensor([10.0]), exponent)
        torch.testing.assert_close(weight, torch.tensor([[1.0], [100.0**exponent]]))

    def test_is_normalised_per_class(self):
        union = torch.tensor([[1.0, 1000.0], [3.0, 1000.0]])
        weight = dice_weight(union, union_norm(union, "mean"), exponent=1.0)
        assert weight.tolist() == [[0.5, 1.0], [1.5, 1.0]]

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_is_one_where_no_sample_has_anything(self, normalization, exponent):
        union = torch.zeros(3, 2)
        assert dice_weight(union, union_norm(union, normalization), exponent).equal(torch.ones(3, 2))

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_differs_between_samples_of_different_size(self, differentiate, normalization):
        # a norm that is one number for the whole batch, divided by its own mean, would make all weights 1
        probabilities, reference = objects_of_one_iou([10, 1000], voxels=2000)
        _, gradient = differentiate(region_loss(normalization=normalization), probabilities, reference)
        _, plain = differentiate(region_loss(exponent=0.0), probabilities, reference)
        weight = (gradient / plain)[:, 0, 0, 0]
        assert weight[1] / weight[0] == pytest.approx(100)

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    @pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
    def test_changes_the_loss_of_samples_that_differ(self, random_batch, normalization, exponent):
        logits, labels = random_batch(batch=3, classes=3)
        options = {"normalization": normalization, "exponent": exponent}
        loss = region_loss(classes=3, **options)(logits.softmax(1), labels)
        dice = region_loss(exponent=0.0)(logits.softmax(1), labels)
        assert abs(loss - dice) > 1e-3

    def test_averages_one_with_the_mean_so_that_objects_of_one_size_give_dice(self, differentiate):
        reference = torch.zeros(3, 1, 1, 100, dtype=torch.float64)
        reference[..., :40] = 1
        probabilities = torch.zeros_like(reference)
        for sample, found in enumerate((10, 30, 40)):
            probabilities[sample, ..., :found] = 1  # whatever is found, the union is 40
        godc = differentiate(region_loss(), probabilities, reference)
        dice = differentiate(region_loss(exponent=0.0), probabilities, reference)
        torch.testing.assert_close(godc, dice)

    @pytest.mark.parametrize("exponent", [1.0, 2.0])
    @pytest.mark.parametrize("normalization", WITHIN_BATCH)
    @pytest.mark.parametrize("detach", [True, False])
    def test_is_one_in_a_batch_of_one_sample(self, random_batch, differentiate, normalization, exponent, detach):
        logits, labels = random_batch(batch=1, dtype=torch.float64)
        options = {"normalization": normalization, "exponent": exponent, "detach": detach}
        torch.testing.assert_close(
            differentiate(GODCLoss(torch.sigmoid, config=GODCConfig(**options)), logits, labels),
            differentiate(GODCLoss(torch.sigmoid, config=GODCConfig(exponent=0.0)), logits, labels),
        )

    @pytest.mark.parametrize("detach", [True, False])
    def test_below_exponent_zero_small_objects_weigh_more(self, differentiate, detach):
        probabilities, reference = objects_of_one_iou([10, 1000], voxels=2000)
        _, gradient = differentiate(region_loss(exponent=-0.5, detach=detach), probabilities, reference)
        _, plain = differentiate(region_loss(exponent=0.0), probabilities, reference)
        weight = (gradient / plain)[:, 0, 0, 0]
        if detach:
            assert weight[0] / weight[1] == pytest.approx(10)
        assert weight[0] > weight[1]

    @pytest.mark.parametrize("detach", [True, False])
    @pytest.mark.parametrize("false_positive", [0.0, 1e-30, 1e-3, 1.0])
    @pytest.mark.parametrize("exponent", [-0.5, -1.0, -4.0])
    def test_below_exponent_zero_a_sample_without_the_class_weighs_one(
        self, differentiate, exponent, false_positive, detach
    ):
        probabilities, reference = objects_of_one_iou([10, 1000], voxels=2000)
        without = torch.zeros_like(reference[:1])
        seen = without.clone()
        seen[..., 5] = false_positive  # a union of next to nothing
        loss = region_loss(exponent=exponent, detach=detach, smooth=1e-5)
        value, gradient = differentiate(loss, torch.cat((probabilities, seen)), torch.cat((reference, without)))
        assert value.isfinite()
        assert gradient.isfinite().all()
        if detach:
            plain = region_loss(exponent=0.0, smooth=1e-5)
            _, of_dice = differentiate(plain, torch.cat((probabilities, seen)), torch.cat((reference, without)))
            torch.testing.assert_close(gradient[2], of_dice[2])

    def test_is_not_one_in_a_batch_of_one_sample_with_a_running_mean(self, random_batch):
        loss = GODCLoss(torch.sigmoid, config=GODCConfig(normalization="running"), classes=3)
        small, large = random_batch(batch=2)[0].split(1)
        _, labels = random_batch(batch=1)
        loss(small - 3, labels)  # the first batch, which sets the mean
        dice = GODCLoss(torch.sigmoid, config=GODCConfig(exponent=0.0))
        assert abs(loss(large + 3, labels) - dice(large + 3, labels)) > 0.1


class TestGradient:
    def test_of_dice_is_eq_7_with_its_missing_factor(self, random_batch, differentiate):
        logits, labels = random_batch(batch=3, classes=2, dtype=torch.float64)
        probabilities, reference = logits.sigmoid()[:, 1:], labels.double()
        _, gradient = differentiate(lambda p, y: len(p) * region_loss(exponent=0.0)(p, y), probabilities, reference)
        torch.testing.assert_close(gradient, closed_form(probabilities, reference), rtol=1e-12, atol=0)

    def test_of_dice_is_not_eq_7_as_printed(self, random_batch, differentiate):
        logits, labels = random_batch(batch=1, classes=2, dtype=torch.float64)
        probabilities, reference = logits.sigmoid()[:, 1:], labels.double()
        statistics = soft_statistics(probabilities, reference)
        union = soft_union(statistics).item()
        iou = statistics.intersection.item() / union
        printed = -(2 * reference - iou * (1 - reference)) / ((1 + iou) ** 2 * union)
        _, gradient = differentiate(region_loss(exponent=0.0), probabilities, reference)
        torch.testing.assert_close(gradient[reference == 1], printed[reference == 1])
        torch.testing.assert_close(gradient[reference == 0], 2 * printed[reference == 0])

    def test_is_independent_of_object_size(self, differentiate):
        sizes = [10, 100, 1000, 10_000, 100_000]
        probabilities, reference = objects_of_one_iou(sizes, voxels=200_000)
        _, gradient = differentiate(region_loss(), probabilities, reference)
        for sample, size in enumerate(sizes):
            for position in (0, size, -1):  # inside the object, in a false positive, in the empty background
                first = {0: 0, size: sizes[0], -1: -1}[position]
                expected = gradient[0, 0, 0, first].item()
                assert gradient[sample, 0, 0, position].item() == pytest.approx(expected, rel=1e-9)

    def test_of_sample_dice_falls_as_one_over_the_union(self, differentiate):
        sizes = [10, 100, 1000, 10_000, 100_000]
        probabilities, reference = objects_of_one_iou(sizes, voxels=200_000)
        dice = MemoryEfficientSoftDiceLoss(do_bg=True, smooth=0, ddp=False)
        _, gradient = differentiate(dice, probabilities, reference)
        union = soft_union(soft_statistics(probabilities, reference))[:, 0]
        per_union = gradient[:, 0, 0, 0] * union
        torch.testing.assert_close(per_union, per_union[:1].expand(5), rtol=1e-5, atol=0)
        assert gradient[0, 0, 0, 0] / gradient[-1, 0, 0, 0] == pytest.approx(1e4, rel=1e-5)

    def test_grows_with_object_size_for_exponent_two(self, differentiate):
        probabilities, reference = objects_of_one_iou([10, 1000], voxels=2000)
        _, gradient = differentiate(region_loss(exponent=2.0), probabilities, reference)
        assert gradient[1, 0, 0, 0] / gradient[0, 0, 0, 0] == pytest.approx(100)

    @pytest.mark.parametrize("classes", [1, 3])
    def test_is_that_of_batch_dice_with_each_samples_own_iou(self, random_batch, differentiate, classes):
        logits, labels = random_batch(batch=4, classes=classes + 1, dtype=torch.float64)
        probabilities = logits.sigmoid()[:, 1:]
        reference = torch.cat([labels == label for label in range(1, classes + 1)], dim=1).double()
        _, gradient = differentiate(region_loss(), probabilities, reference)
        unions = soft_union(soft_statistics(probabilities, reference)).sum(0).view(1, classes, 1, 1, 1)
        expected = closed_form(probabilities, reference, union=unions) / classes
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)

        pooled = soft_statistics(probabilities, reference)
        iou = (pooled.intersection.sum(0) / soft_union(pooled).sum(0)).view(1, classes, 1, 1, 1)
        batch_dice = MemoryEfficientSoftDiceLoss(batch_dice=True, do_bg=True, smooth=0, ddp=False)
        _, gradient_of_batch_dice = differentiate(batch_dice, probabilities, reference)
        expected = closed_form(probabilities, reference, iou=iou, union=unions) / classes
        torch.testing.assert_close(gradient_of_batch_dice, expected, rtol=1e-5, atol=0)
        assert (gradient_of_batch_dice - gradient).abs().max() > 0.1 * gradient.abs().max()

    def test_equals_that_of_batch_dice_where_all_samples_have_one_iou(self, differentiate):
        probabilities, reference = objects_of_one_iou([10, 200, 4000], voxels=8000)
        batch_dice = MemoryEfficientSoftDiceLoss(batch_dice=True, do_bg=True, smooth=0, ddp=False)
        godc = differentiate(region_loss(), probabilities, reference)
        torch.testing.assert_close(
            godc, differentiate(batch_dice, probabilities, reference), rtol=1e-5, atol=0, check_dtype=False
        )

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    @pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
    def test_is_exact_where_the_weight_takes_part(self, random_batch, normalization, exponent):
        logits, labels = random_batch(batch=2, classes=3, size=(2, 2, 2), dtype=torch.float64)
        mask = torch.ones_like(labels).index_fill_(2, torch.tensor(1), 0)
        config = GODCConfig(normalization=normalization, exponent=exponent, detach=False)
        loss = GODCLoss(softmax_helper_dim1, config=config, classes=3)
        loss(logits + 1, labels, mask)
        loss.eval()  # the running mean must stand still while the loss is differentiated numerically
        assert torch.autograd.gradcheck(lambda x: loss(x, labels, mask), logits.requires_grad_())

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    @pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
    def test_is_exact_with_the_weight_as_a_constant(self, random_batch, differentiate, normalization, exponent):
        logits, labels = random_batch(batch=2, classes=3, size=(2, 3), dtype=torch.float64)
        union = soft_union(soft_statistics(logits.softmax(1), labels, include_background=False))
        weight = dice_weight(union, union_norm(union, normalization), exponent)

        def with_fixed_weight(x):
            dice = soft_dice(soft_statistics(x.softmax(1), labels, include_background=False), 1e-5)
            return (weight * (1 - dice)).mean() - 1

        assert torch.autograd.gradcheck(with_fixed_weight, logits.clone().requires_grad_())
        config = GODCConfig(normalization=normalization, exponent=exponent)
        loss = GODCLoss(softmax_helper_dim1, config=config, classes=3)
        torch.testing.assert_close(
            differentiate(loss, logits, labels), differentiate(with_fixed_weight, logits), rtol=1e-9, atol=1e-12
        )

    def test_takes_the_weight_along_only_where_asked(self, random_batch, differentiate):
        logits, labels = random_batch()
        constant, through = (
            differentiate(GODCLoss(softmax_helper_dim1, config=GODCConfig(detach=detach)), logits, labels)
            for detach in (True, False)
        )
        assert constant[0] == through[0]
        assert (constant[1] - through[1]).abs().max() > 0.1 * constant[1].abs().max()


class TestRunningMean:
    """The mean union of the batches so far, as a share of the output's voxels."""

    @staticmethod
    def make(momentum=0.01, classes=1):
        return region_loss(smooth=1e-5, normalization="running", momentum=momentum, classes=classes)

    @staticmethod
    def batch_of(*shares):
        """Probabilities and reference whose unions are these shares of 100 voxels."""
        position = torch.arange(100).view(1, 1, 10, 10) / 100
        reference = (position < torch.tensor(shares).view(-1, 1, 1, 1) - 1e-4).float()
        return reference * 0.5, reference

    def test_starts_as_the_average_of_all_batches_and_then_forgets(self):
        loss = self.make(momentum=0.25)
        for share in (0.1, 0.5, 0.3, 0.7):
            loss(*self.batch_of(share - 0.05, share + 0.05))
        assert loss.running_union.item() == pytest.approx(0.4)
        assert loss.batches_seen.item() == 4
        loss(*self.batch_of(0.9, 0.7))
        assert loss.running_union.item() == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)

    def test_weighs_the_first_batch_with_its_own_mean(self):
        batch = self.batch_of(0.1, 0.6)
        torch.testing.assert_close(self.make()(*batch), region_loss(smooth=1e-5, normalization="mean")(*batch))

    def test_weighs_a_batch_with_the_mean_of_those_before_it(self):
        loss = self.make()
        loss(*self.batch_of(0.2, 0.4))
        probabilities, reference = self.batch_of(0.6, 0.9)
        dice = soft_dice(soft_statistics(probabilities, reference), 1e-5)
        expected = (torch.tensor([[2.0], [3.0]]) * (1 - dice)).mean() - 1  # 0.6 and 0.9 over 0.3
        torch.testing.assert_close(loss(probabilities, reference), expected)

    def test_makes_a_sample_independent_of_its_batch_mates(self, differentiate):
        small_mate, large_mate = (self.batch_of(0.3, share) for share in (0.1, 0.9))
        loss = self.make()
        loss(*self.batch_of(0.5, 0.7))
        state = {name: value.clone() for name, value in loss.state_dict().items()}
        gradients = []
        for probabilities, reference in (small_mate, large_mate):
            loss.load_state_dict(state)
            gradients.append(differentiate(loss, probabilities, reference)[1][0])
        assert gradients[0].equal(gradients[1])

        mean = region_loss(normalization="mean")
        first, second = (differentiate(mean, *batch)[1][0] for batch in (small_mate, large_mate))
        assert not first.allclose(second, rtol=0.5)  # what the running mean is for

    def test_stands_still_in_evaluation(self):
        loss = self.make()
        loss(*self.batch_of(0.2))
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        loss.eval()
        loss(*self.batch_of(0.8))
        assert all(loss.state_dict()[name].equal(value) for name, value in before.items())

    def test_moves_without_gradients_too_in_training(self):
        loss = self.make()
        with torch.no_grad():
            loss(*self.batch_of(0.2))
        assert loss.batches_seen.item() == 1

    def test_survives_a_checkpoint(self, tmp_path, random_batch):
        loss = GODCLoss(softmax_helper_dim1, config=GODCConfig(normalization="running"), classes=4)
        for seed in range(3):
            loss(*random_batch(classes=4, seed=seed))
        torch.save(loss.state_dict(), tmp_path / "checkpoint.pth")
        restored = GODCLoss(softmax_helper_dim1, config=GODCConfig(normalization="running"), classes=4)
        restored.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
        for seed in range(3, 5):
            batch = random_batch(classes=4, seed=seed)
            assert restored(*batch).equal(loss(*batch))
        assert restored.batches_seen.item() == 5

    @pytest.mark.parametrize("normalization", WITHIN_BATCH)
    def test_is_the_only_state(self, normalization):
        assert GODCLoss(config=GODCConfig(normalization=normalization), classes=3).state_dict() == {}

    def test_is_one_for_all_resolutions(self):
        loss, coarse = self.make(), self.make()
        probabilities, reference = self.batch_of(0.2, 0.5)
        half_a_voxel_each = [
            image.repeat_interleave(2, 2).repeat_interleave(2, 3) for image in (probabilities, reference)
        ]
        loss(*half_a_voxel_each)
        coarse(probabilities, reference)
        torch.testing.assert_close(loss.running_union, coarse.running_union)
        for resolution in ((probabilities, reference), half_a_voxel_each):
            torch.testing.assert_close(loss.eval()(*resolution), coarse.eval()(*resolution), rtol=1e-5, atol=1e-5)

    def test_keeps_a_mean_per_class(self):
        loss = self.make(classes=2)
        (first, reference), (second, other) = self.batch_of(0.2, 0.4), self.batch_of(0.8, 1.0)
        loss(torch.cat((first, second), dim=1), torch.cat((reference, other), dim=1))
        torch.testing.assert_close(loss.running_union, torch.tensor([0.3, 0.9]))

    def test_is_not_spoilt_by_a_batch_that_is_not_finite(self):
        loss = self.make()
        probabilities, reference = self.batch_of(0.2, 0.4)
        assert loss(probabilities * math.nan, reference).isnan()
        assert loss.batches_seen.item() == 0
        loss(probabilities, reference)
        assert loss(probabilities * math.nan, reference).isnan()
        assert loss.running_union.item() == pytest.approx(0.3)
        assert loss(probabilities, reference).isfinite()
