"""Soft statistics and cross-entropy in one pass: equal to the plain modules, whoever computes them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nnunet_godc.losses import _fused_numba, _fused_torch, fused, soft_statistics
from nnunet_godc.losses.fused import soft_statistics_and_cross_entropy

needs_numba = pytest.mark.skipif(_fused_numba.why_unusable() is not None, reason="numba is not usable here")
IMPLEMENTATIONS = [
    pytest.param(_fused_torch, torch.float64, id="torch-float64"),
    pytest.param(_fused_torch, torch.float32, id="torch-float32"),
    pytest.param(_fused_numba, torch.float32, id="numba", marks=needs_numba),
]
on_the_cpu = pytest.mark.parametrize(("implementation", "dtype"), IMPLEMENTATIONS)


def plain(logits, target, regions, ignore_label):
    """The same sums, (B, 3C + 2), by the plain modules and PyTorch's cross-entropy, in float64."""
    logits = logits.double()
    classes = logits.shape[1]
    if regions:
        mask = (target[:, classes:] != 1).all(1, keepdim=True)
        target = target[:, :classes].double()
        probabilities = logits.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * mask
    else:
        mask = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
        target = torch.where(mask, target, 0).long()
        probabilities = logits.softmax(1)
        cross_entropy = F.cross_entropy(logits, target[:, 0], reduction="none")[:, None] * mask
    statistics = soft_statistics(probabilities, target, mask)
    return torch.cat([*statistics, cross_entropy.flatten(1).sum(1, True), mask.flatten(1).sum(1, True)], dim=1)


def batch(
    *, samples=2, classes=3, size=(5, 6, 7), regions=False, ignored=False, scale=1.0, dtype=torch.float32, seed=0
):
    """Logits, target, and the arguments `regions` and `ignore_label`."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((samples, classes, *size), generator=generator, dtype=torch.float64)
    if regions:
        target = torch.rand((samples, classes + ignored, *size), generator=generator) < 0.4
    else:
        target = torch.randint(classes + ignored, (samples, 1, *size), generator=generator)
    return logits, target.to(dtype), regions, classes if ignored and not regions else None


def check(implementation, dtype, logits, target, regions, ignore_label):
    """Compares the sums and their gradient with the plain modules'."""
    leaf = logits.clone().requires_grad_()
    expected = plain(leaf, target, regions, ignore_label)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, weights)
    flat = logits.to(dtype).flatten(2), target.flatten(2)
    assert implementation.supports(*flat)
    sums = implementation.sums(*flat, regions, ignore_label)
    gradient = implementation.gradient(weights.to(sums.dtype), *flat, regions, ignore_label)
    assert sums.dtype == gradient.dtype == dtype
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(sums.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    largest = expected_gradient.abs().max().item()
    torch.testing.assert_close(
        gradient.view(logits.shape).double(), expected_gradient, rtol=tolerance, atol=tolerance * max(largest, 1.0)
    )


@on_the_cpu
@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 3),
    classes=st.integers(2, 7),
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple),
    regions=st.booleans(),
    ignored=st.booleans(),
    scale=st.sampled_from([0.0, 1.0, 10.0]),
    target=st.sampled_from([torch.float32, torch.int16, torch.uint8]),
    seed=st.integers(0, 2**31),
)
def test_sums_and_gradient_are_those_of_the_plain_modules(
    implementation, dtype, samples, classes, size, regions, ignored, scale, target, seed
):
    options = {"samples": samples, "classes": classes, "size": size, "regions": regions, "ignored": ignored}
    check(implementation, dtype, *batch(**options, scale=scale, dtype=target, seed=seed))


@on_the_cpu
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("target", [torch.bool, torch.int64])
def test_a_target_may_have_any_dtype(implementation, dtype, regions, target):
    check(implementation, dtype, *batch(classes=2, regions=regions, dtype=target))


@on_the_cpu
@pytest.mark.parametrize("regions", [False, True])
def test_a_patch_larger_than_a_chunk_or_tile_is_no_different(implementation, dtype, regions, monkeypatch):
    monkeypatch.setattr(_fused_torch, "CHUNK", 500)
    check(implementation, dtype, *batch(size=(11, 13, 17), regions=regions, ignored=True))


@on_the_cpu
def test_many_classes(implementation, dtype):
    check(implementation, dtype, *batch(classes=118, size=(9, 70), ignored=True))


@on_the_cpu
@pytest.mark.parametrize("regions", [False, True])
def test_extreme_logits(implementation, dtype, regions):
    logits, target, *rest = batch(regions=regions, scale=1e4)
    check(implementation, dtype, logits, target, *rest)
    check(implementation, dtype, torch.full_like(logits, -1e4), target, *rest)


@needs_numba
def test_small_cross_entropies_are_not_lost():
    _, target, *rest = batch(regions=True)
    logits = torch.where(target == 1, 18.0, -18.0)  # 1 + exp(-18) is 1 in single precision
    sums = _fused_numba.sums(logits.flatten(2), target.flatten(2), *rest)
    torch.testing.assert_close(sums.double(), plain(logits, target, *rest), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["channels last", "some of the channels", "axes in another order"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_memory_may_be_laid_out_in_any_way(layout, dtype):
    logits, target, *rest = batch(classes=4)
    logits = logits.to(dtype)
    if layout == "channels last":
        strided = logits.to(memory_format=torch.channels_last_3d)
    elif layout == "some of the channels":
        strided = torch.cat([logits, logits], dim=1)[:, :4]
    else:
        strided = logits.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)
    results = []
    for memory in (logits, strided):
        leaf = memory.detach().requires_grad_()
        sums = fused._soft_sums(leaf, target, *rest)
        results.append((sums.detach(), *torch.autograd.grad(sums[:, -2].sum() + sums[:, 0].sum(), leaf)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_half_precision_are_summed_in_single(dtype):
    logits, target, *_ = batch(size=(64, 64))
    leaf = logits.to(dtype).requires_grad_()
    statistics, cross_entropy, voxels = soft_statistics_and_cross_entropy(leaf, target)
    assert {entry.dtype for entry in (*statistics, cross_entropy, voxels)} == {torch.float32}
    sums = torch.cat([*statistics, cross_entropy[:, None]], 1).double()
    torch.testing.assert_close(sums, plain(leaf, target, False, None)[:, :-1], rtol=1e-6, atol=0)
    cross_entropy.sum().backward()
    assert leaf.grad.dtype == dtype


def test_autocast_changes_nothing():
    logits, target, *_ = batch()
    logits = logits.float()
    expected = soft_statistics_and_cross_entropy(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = soft_statistics_and_cross_entropy(logits, target)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_nan_logit_is_not_hidden(regions, dtype):
    logits, target, *rest = batch(regions=regions)
    logits[1, 2, 0, 0, 0] = math.nan
    target[1, 0, 0, 0, 0] = 0  # of labels another one than that class
    sums = fused._soft_sums(logits.to(dtype), target, *rest)
    assert sums[1, 3 + 2].isnan()  # the prediction of its class
    assert sums[1, -2].isnan()
    assert sums[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_have_no_gradient_whatever_their_logits(regions, dtype):
    logits, target, regions, ignore_label = batch(regions=regions, ignored=True)
    ignored = (target[:, -1:] == 1) if regions else target == ignore_label
    leaf = torch.where(ignored, 1e3, logits).to(dtype).requires_grad_()
    fused._soft_sums(leaf, target, regions, ignore_label).sum().backward()
    assert leaf.grad[ignored.expand_as(leaf)].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_named(dtype, label):
    logits, target, *_ = batch()
    target[0, 0, 1, 2, 3] = label
    with pytest.raises(ValueError, match=rf"holds the label {label}.0; .* stand for the labels 0 to 2"):
        soft_statistics_and_cross_entropy(logits.to(dtype), target)
    soft_statistics_and_cross_entropy(logits.to(dtype), target, ignore_label=label)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ignored_labels_are_no_unknown_ones(dtype):
    logits, target, _, ignore_label = batch(ignored=True)
    target[0, 0, 0, 0, 0] = ignore_label  # ahead of the wrong one
    logits[1, 2, 4, 5, 6] = math.nan  # only then are labels looked at
    target[1, 0, 4, 5, 6] = 0
    _, cross_entropy, _ = soft_statistics_and_cross_entropy(logits.to(dtype), target, ignore_label=ignore_label)
    assert cross_entropy.isnan().tolist() == [False, True]
    target[0, 0, 1, 2, 3] = 17
    with pytest.raises(ValueError, match=r"holds the label 17.0;"):
        soft_statistics_and_cross_entropy(logits.to(dtype), target, ignore_label=ignore_label)


@pytest.mark.parametrize(
    ("target", "regions"),
    [((2, 3, 5, 6, 7), False), ((2, 1, 5, 6, 8), False), ((2, 5, 5, 6, 7), True), ((2, 5), False)],
)
def test_shapes_that_do_not_fit_are_told(target, regions):
    with pytest.raises(ValueError, match=r"target has shape .*; logits of shape \(2, 3, 5, 6, 7\) go with"):
        soft_statistics_and_cross_entropy(torch.zeros(2, 3, 5, 6, 7), torch.zeros(target), regions=regions)


@pytest.mark.parametrize("regions", [False, True])
def test_gradient_is_exact(regions):
    logits, target, *rest = batch(size=(3, 2), regions=regions, ignored=True)
    assert torch.autograd.gradcheck(lambda x: fused._soft_sums(x, target, *rest), logits.requires_grad_())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_operation_keeps_the_rules_of_torch_library(regions, dtype):
    logits, target, *rest = batch(size=(3, 4), regions=regions, ignored=True)
    torch.library.opcheck(fused._soft_sums, (logits.to(dtype, copy=True).requires_grad_(), target, *rest))
    grad_sums = torch.ones(2, 11, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    torch.library.opcheck(fused._soft_sums_backward, (grad_sums, logits.to(dtype), target, *rest))


def test_nothing_of_the_patches_size_is_kept_but_logits_and_target():
    logits, target, *rest = batch()
    leaf = logits.float().requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused._soft_sums(leaf, target, *rest)
    assert {tensor.data_ptr() for tensor in kept} == {leaf.data_ptr(), target.data_ptr()}


@needs_numba
def test_numba_kernels_are_taken_for_single_precision_on_the_cpu():
    logits, target, *_ = batch()
    flat_target = target.flatten(2)
    assert fused._select(logits.float().flatten(2), flat_target) is _fused_numba
    for other in (logits.flatten(2), logits.half().flatten(2), logits.float().flatten(2).mT.contiguous().mT):
        assert fused._select(other, flat_target) is _fused_torch


@needs_numba
def test_threads_share_the_work_without_changing_the_result(monkeypatch):
    monkeypatch.setattr(_fused_numba, "LOGITS_PER_THREAD", 1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            check(_fused_numba, torch.float32, *batch(size=(1, 2)))
            check(_fused_numba, torch.float32, *batch(size=(40, 50), ignored=True))
            check(_fused_numba, torch.float32, *batch(size=(40, 50), regions=True, ignored=True))
    finally:
        torch.set_num_threads(before)


def test_without_numba_plain_pytorch_computes_the_same(monkeypatch):
    logits, target, *rest = batch()
    expected = fused._soft_sums(logits.float(), target, *rest)
    monkeypatch.setattr(_fused_numba, "why_unusable", lambda: "broken")
    torch.testing.assert_close(fused._soft_sums(logits.float(), target, *rest), expected)
