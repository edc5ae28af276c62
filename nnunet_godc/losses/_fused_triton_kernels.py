"""The two passes over the logits on the GPU: sums over voxels, and the gradient by the logits.

Throughout, `logits` and `grad_logits` (B, C, V) come with their strides, so that channels may lie first or last, and
`target` (B, K, V) is contiguous; arithmetic is float32. A tile is a block of voxels with all their classes. REGIONS: K
is C, or C + 1 with a last channel that tells the ignored voxels. IGNORES: whether voxels are ignored, those or the ones
of `ignore_label`.
"""

# ruff: noqa: N803  constants of the compiler are in capitals, as in Triton's own examples
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _log1p(x):
    """ln(1 + x) for x in [0, 1], also where 1 + x is 1: 2 artanh(x / (2 + x)), whose quotient is 1/3 at most."""
    quotient = x / (2 + x)
    square = quotient * quotient
    series = 2 / 15 * square + 2 / 13
    series = series * square + 2 / 11
    series = series * square + 2 / 9
    series = series * square + 2 / 7
    series = series * square + 2 / 5
    series = series * square + 2 / 3
    return (series * square + 2) * quotient


@triton.jit
def _load_logits(logits, stride_b, stride_c, stride_v, sample, classes, channel, voxel, exists):
    """A tile, (BLOCK_C, BLOCK_V), 0 where there is nothing to be read."""
    places = sample * stride_b + channel[:, None] * stride_c + voxel[None, :] * stride_v
    there = (channel < classes)[:, None] & exists[None, :]
    return tl.load(logits + places, mask=there, other=0).to(tl.float32)


@triton.jit
def _load_labels(target, sample, voxels, voxel, exists, ignore_label, IGNORES: tl.constexpr):
    """Labels of a tile's voxels, and whether they count, both (BLOCK_V,)."""
    label = tl.load(target + sample * voxels + voxel, mask=exists, other=0).to(tl.int32)
    if IGNORES:
        exists = exists & (label != ignore_label)
    return label, exists


@triton.jit
def _load_regions(target, sample, classes, voxels, channel, voxel, exists, IGNORES: tl.constexpr):
    """Regions of a tile, (BLOCK_C, BLOCK_V), and whether its voxels count, (BLOCK_V,)."""
    target += sample * (classes + 1 if IGNORES else classes) * voxels
    places = channel[:, None] * voxels + voxel[None, :]
    inside = tl.load(target + places, mask=(channel < classes)[:, None] & exists[None, :], other=0).to(tl.float32)
    if IGNORES:
        ignored = tl.load(target + tl.cast(classes, tl.int64) * voxels + voxel, mask=exists, other=0).to(tl.float32)
        exists = exists & (ignored != 1)
    return inside, exists


@triton.jit
def _sum_fours(tile):
    """(BLOCK_C, BLOCK_V) -> (BLOCK_C, BLOCK_V / 4): neighbours lie in one thread, which keeps their sum only."""
    return tl.sum(tl.reshape(tile, (tile.shape[0], tile.shape[1] // 4, 4)), 2)


@triton.jit
def sum_tiles(
    logits,
    stride_b,
    stride_c,
    stride_v,
    target,
    partials,
    classes,
    voxels,
    ignore_label,
    REGIONS: tl.constexpr,
    IGNORES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Adds up every n-th tile of a sample, n being the number of programs, into a row of `partials` (B, n, 3C + 2)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C).to(tl.int64)
    intersection = tl.zeros((BLOCK_C, BLOCK_V // 4), tl.float32)
    prediction = tl.zeros((BLOCK_C, BLOCK_V // 4), tl.float32)
    reference = tl.zeros((BLOCK_C, BLOCK_V // 4), tl.float32)
    selected = tl.zeros((BLOCK_C, BLOCK_V // 4), tl.float32)
    cross_entropy = tl.zeros((BLOCK_V,), tl.float32)
    counts = tl.zeros((BLOCK_V,), tl.float32)
    for tile in range(program, tl.cdiv(voxels, BLOCK_V), programs):
        voxel = tile * BLOCK_V + tl.arange(0, BLOCK_V).to(tl.int64)
        exists = voxel < voxels
        logit = _load_logits(logits, stride_b, stride_c, stride_v, sample, classes, channel, voxel, exists)
        if REGIONS:
            inside, valid = _load_regions(target, sample, classes, voxels, channel, voxel, exists, IGNORES)
            weight = valid.to(tl.float32)[None, :]
            exponential = tl.exp(-tl.abs(logit))
            share = weight / (1 + exponential)
            probability = tl.where(logit < 0, exponential * share, share)
            entropy = tl.maximum(logit, 0) - logit * inside + _log1p(exponential)
            entropy = tl.sum(tl.where((channel < classes)[:, None], entropy * weight, 0), 0)
            intersection += _sum_fours(probability * inside)
            reference += _sum_fours(inside * weight)
        else:
            label, valid = _load_labels(target, sample, voxels, voxel, exists, ignore_label, IGNORES)
            logit = tl.where((channel < classes)[:, None], logit, float("-inf"))
            logit -= tl.max(logit, 0)[None, :]
            exponential = tl.exp(logit)
            # A NaN, whose sums are NaN anyway, is no match. Without the comparison with a value of the tile the
            # compiler lays out the matches in another way, and computes them twice.
            here = (channel[:, None] == tl.where(valid, label, -1)[None, :]) & (exponential <= 1)
            inside = tl.where(here, 1.0, 0.0)
            total = tl.sum(exponential, 0)
            probability = exponential * (valid.to(tl.float32) / total)[None, :]
            entropy = tl.log(total)
            known = (label >= 0) & (label < classes)
            entropy = tl.where(valid, tl.where(known, entropy, float("nan")), 0)
            intersection += _sum_fours(probability * inside)
            reference += _sum_fours(inside)
            selected += _sum_fours(tl.where(here, logit, 0))
        prediction += _sum_fours(probability)
        cross_entropy += entropy
        counts += valid.to(tl.float32)
    partials += (sample * programs + program) * (3 * classes + 2)
    tl.store(partials + channel, tl.sum(intersection, 1), mask=channel < classes)
    tl.store(partials + classes + channel, tl.sum(prediction, 1), mask=channel < classes)
    tl.store(partials + 2 * classes + channel, tl.sum(reference, 1), mask=channel < classes)
    tl.store(partials + 3 * classes, tl.sum(cross_entropy, 0) - tl.sum(selected))
    tl.store(partials + 3 * classes + 1, tl.sum(counts, 0))


@triton.jit
def differentiate_tile(
    logits,
    stride_b,
    stride_c,
    stride_v,
    target,
    grad_sums,
    grad_logits,
    grad_stride_b,
    grad_stride_c,
    grad_stride_v,
    classes,
    voxels,
    ignore_label,
    REGIONS: tl.constexpr,
    IGNORES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """The gradient by the logits of one tile, from the one by the sums, `grad_sums` (B, 3C + 2)."""
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C).to(tl.int64)
    voxel = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V).to(tl.int64)
    exists = voxel < voxels
    grad_sums += sample * (3 * classes + 2)
    by_intersection = tl.load(grad_sums + channel, mask=channel < classes, other=0)[:, None]
    by_prediction = tl.load(grad_sums + classes + channel, mask=channel < classes, other=0)[:, None]
    by_cross_entropy = tl.load(grad_sums + 3 * classes)
    logit = _load_logits(logits, stride_b, stride_c, stride_v, sample, classes, channel, voxel, exists)
    if REGIONS:
        inside, valid = _load_regions(target, sample, classes, voxels, channel, voxel, exists, IGNORES)
        exponential = tl.exp(-tl.abs(logit))
        share = 1 / (1 + exponential)
        probability = tl.where(logit < 0, exponential * share, share)
        grad = exponential * share * share * (by_intersection * inside + by_prediction)
        grad += by_cross_entropy * (probability - inside)
        grad *= valid.to(tl.float32)[None, :]
    else:
        label, valid = _load_labels(target, sample, voxels, voxel, exists, ignore_label, IGNORES)
        logit = tl.where((channel < classes)[:, None], logit, float("-inf"))
        exponential = tl.exp(logit - tl.max(logit, 0)[None, :])
        probability = exponential * (valid.to(tl.float32) / tl.sum(exponential, 0))[None, :]
        here = channel[:, None] == tl.where(valid, label, -1)[None, :]
        by_probability = by_prediction + tl.where(here, by_intersection, 0)
        mean = tl.sum(by_probability * probability, 0)
        grad = probability * (by_probability - (mean - by_cross_entropy)[None, :]) - tl.where(here, by_cross_entropy, 0)
    places = sample * grad_stride_b + channel[:, None] * grad_stride_c + voxel[None, :] * grad_stride_v
    inside_tile = (channel < classes)[:, None] & exists[None, :]
    tl.store(grad_logits + places, grad.to(grad_logits.dtype.element_ty), mask=inside_tile)
