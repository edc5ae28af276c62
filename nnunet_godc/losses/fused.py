"""Soft statistics and cross-entropy of logits from one pass over them, and their gradient from a second.

:func:`soft_statistics` and PyTorch's cross-entropy keep probabilities, one-hot labels and log-probabilities of every
voxel until the gradient is computed. Here the forward pass leaves nothing but sums over voxels, and the backward pass
computes the probabilities p anew. With a, b and w the gradients by a class's intersection, its prediction and the
cross-entropy, and y the reference, the gradient by the logit of class c is

    p_c (g_c - sum_j g_j p_j) + w (p_c - y_c),   g_c = a_c y_c + b_c     for a softmax over labels
    p_c (1 - p_c) g_c         + w (p_c - y_c)                            for the sigmoid of every region
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nnunet_godc.losses import _fused_numba, _fused_torch, _fused_triton
from nnunet_godc.losses.statistics import SoftStatistics


def soft_statistics_and_cross_entropy(
    logits: Tensor, target: Tensor, *, regions: bool = False, ignore_label: int | None = None
) -> tuple[SoftStatistics, Tensor, Tensor]:
    """Soft statistics of softmax or sigmoid probabilities, together with the cross-entropy.

    Ignored voxels count nowhere and get no gradient. Gradients flow to the logits only; they cannot be differentiated
    again.

    Args:
        logits: (B, C, ...), any floating dtype; at least 2 classes for labels.
        target: labels (B, 1, ...) in [0, C), any dtype; for `regions` (B, C, ...) in [0, 1], or (B, C + 1, ...) whose
            last channel is 1 where a voxel is ignored.
        regions: whether the classes are regions, which may overlap and go through a sigmoid, instead of labels.
        ignore_label: the label of ignored voxels, or None.

    Returns:
        The statistics of every class, (B, C) each; the cross-entropy (binary for regions) summed over voxels and
        regions, (B,); the number of voxels that are not ignored, (B,). All float32, or float64 for float64 logits.

    Raises:
        ValueError: if shapes do not fit; on the CPU also for a label outside [0, C). On a GPU, which the question would
            bring to a halt, such a label makes the cross-entropy NaN.
    """
    classes = logits.shape[1]
    channels = (classes, classes + 1) if regions else (1,)
    if target.shape[1] not in channels or (target.shape[0], *target.shape[2:]) != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; logits of shape {tuple(logits.shape)} go with one of that size "
            f"and {' or '.join(map(str, channels))} channels"
        )
    sums = _soft_sums(logits, target, regions, ignore_label)  # (B, 3C + 2)
    *statistics, cross_entropy, voxels = sums.split([classes, classes, classes, 1, 1], dim=1)
    return SoftStatistics(*statistics), cross_entropy[:, 0], voxels[:, 0]


class _Implementation(Protocol):
    """A module that computes the sums, (B, 3C + 2), and their gradient, of logits (B, C, V) and a target (B, K, V).

    The sums are intersection, prediction and reference of every class, the cross-entropy, and the number of voxels that
    count. They are float32, or float64 for float64 logits. A label outside [0, C) makes the cross-entropy NaN.
    """

    def why_unusable(self) -> str | None:
        """None where it can run on this machine, otherwise the reason in a sentence."""

    def supports(self, logits: Tensor, target: Tensor) -> bool:
        """Whether it takes these tensors."""

    def sums(self, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor: ...

    def gradient(
        self, grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
    ) -> Tensor: ...


# Fastest first; the last takes everything.
_IMPLEMENTATIONS: tuple[_Implementation, ...] = (_fused_triton, _fused_numba, _fused_torch)


def _select(logits: Tensor, target: Tensor) -> _Implementation:
    return next(
        implementation
        for implementation in _IMPLEMENTATIONS
        if implementation.supports(logits, target) and implementation.why_unusable() is None
    )


# Schemas are spelt out, since what torch.library reads from annotations differs from version to version.
@torch.library.custom_op(
    "nnunet_godc::soft_sums",
    mutates_args=(),
    schema="(Tensor logits, Tensor target, bool regions, int? ignore_label) -> Tensor",
)
def _soft_sums(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    flat, flat_target = logits.detach().flatten(2), target.flatten(2)
    sums = _select(flat, flat_target).sums(flat, flat_target, regions, ignore_label)
    if logits.device.type == "cpu" and not regions and sums[:, -2].isnan().any():
        _check_labels(target, logits.shape[1], ignore_label)
    return sums


@torch.library.custom_op(
    "nnunet_godc::soft_sums_backward",
    mutates_args=(),
    schema="(Tensor grad_sums, Tensor logits, Tensor target, bool regions, int? ignore_label) -> Tensor",
)
def _soft_sums_backward(
    grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
) -> Tensor:
    flat, flat_target = logits.detach().flatten(2), target.flatten(2)
    implementation = _select(flat, flat_target)
    return implementation.gradient(grad_sums, flat, flat_target, regions, ignore_label).view(logits.shape)


def _check_labels(target: Tensor, classes: int, ignore_label: int | None) -> None:
    labels = target if ignore_label is None else target[target != ignore_label]
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise ValueError(
            f"the target holds the label {unknown[0].item()}; the output's {classes} channels stand for the labels "
            f"0 to {classes - 1}"
        )


@_soft_sums.register_fake
def _(logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[0], 3 * logits.shape[1] + 2, dtype=dtype)


@_soft_sums_backward.register_fake
def _(grad_sums: Tensor, logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    return torch.empty_like(logits.flatten(2)).view(logits.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, ctx.regions, ctx.ignore_label = inputs
    ctx.save_for_backward(logits, target)


def _gradients(ctx: Any, grad_sums: Tensor) -> tuple[Any, ...]:
    logits, target = ctx.saved_tensors
    return _soft_sums_backward(grad_sums, logits, target, ctx.regions, ctx.ignore_label), None, None, None


_soft_sums.register_autograd(_gradients, setup_context=_save_for_backward)
