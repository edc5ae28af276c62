"""Deformable convolution in 2D and 3D, as one operation that autograd, autocast and torch.compile understand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_godc.ops import backends
from nnunet_godc.ops._geometry import Arguments, output_size


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    offset_groups: int = 1,
) -> Tensor:
    r"""Convolution whose taps are displaced by an offset that differs from voxel to voxel.

    .. math::
        y(p) = b + \sum_k m_k(p)\, W_k\, x\bigl(s\,p + p_k + \Delta_k(p)\bigr)

    with s the stride, :math:`p_k` the regular position of tap k, :math:`\Delta_k` its offset in voxels, :math:`m_k` its
    modulation (1 without `mask`), and x read by linear interpolation, zero outside the map. Dai et al. 2017 (DCN v1);
    with `mask` Zhu et al. 2019 (DCN v2). The order of the arguments is that of ``torchvision.ops.deform_conv2d``, whose
    values it has in 2D.

    Args:
        input: (B, C, H, W) or (B, C, D, H, W), float64, float32, float16 or bfloat16.
        offset: (B, offset_groups * taps * d, *output size), in voxels of the input; per tap the axes in the order
            (z, y, x), taps in C order. d is the number of spatial axes N, or N - 1: then the offsets move the last
            N - 1 axes only ("in-plane" in 3D) and the first stays on the grid.
        weight: (C_out, C / groups, *kernel); the number of groups follows from its shape.
        bias: (C_out,) or None.
        stride: distance between outputs in voxels of the input, one number or one per axis.
        padding: zeros added on both sides, one number or one per axis.
        dilation: distance between taps, one number or one per axis.
        mask: (B, offset_groups * taps, *output size) or None.
        offset_groups: the channels are split into so many groups, each with offsets of its own.

    Returns:
        (B, C_out, *output size), dtype of `input`. Positions and sums are float32 (float64 for float64) whatever the
        dtype. Under autocast input, weight, bias and mask are cast to its dtype; offsets keep theirs.

    Raises:
        ValueError: if shapes, groups or numbers per axis do not fit together.
        TypeError: if a tensor is not floating point.

    Example:
        >>> import torch
        >>> x = torch.arange(8.0).view(1, 1, 2, 2, 2)
        >>> deform_conv(x, torch.zeros(1, 3, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)).equal(x)
        True
    """
    dimensions = input.dim() - 2
    if dimensions not in (2, 3):
        raise ValueError(f"input has shape {tuple(input.shape)}; deform_conv takes (B, C, H, W) or (B, C, D, H, W)")
    strides = _per_axis("stride", stride, dimensions, minimum=1)
    paddings = _per_axis("padding", padding, dimensions, minimum=0)
    dilations = _per_axis("dilation", dilation, dimensions, minimum=1)
    _check(input, offset, weight, bias, mask, strides, paddings, dilations, offset_groups)
    output: Tensor = _deform_conv(input, offset, weight, bias, mask, strides, paddings, dilations, offset_groups)
    return output


def _per_axis(name: str, value: int | Sequence[int], dimensions: int, minimum: int) -> list[int]:
    values = [value] * dimensions if isinstance(value, int) else [int(entry) for entry in value]
    if len(values) != dimensions or any(entry < minimum for entry in values):
        raise ValueError(f"{name} is {value}; it must be one number or {dimensions} numbers, each at least {minimum}")
    return values


def _check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_groups: int,
) -> None:
    tensors = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; deform_conv needs a floating point dtype")

    dimensions = input.dim() - 2
    channels = input.shape[1]
    if weight.dim() != input.dim():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; a {dimensions}D input needs {input.dim()} axes")
    channels_out, channels_per_group = weight.shape[:2]
    if channels_per_group == 0 or channels % channels_per_group or channels_out % (channels // channels_per_group):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} does not fit {channels} input channels: its second axis must "
            f"divide them, and the number of groups that results must divide its first"
        )
    if offset_groups < 1 or channels % offset_groups:
        raise ValueError(f"offset_groups is {offset_groups}; it must divide the {channels} input channels")
    if bias is not None and bias.shape != (channels_out,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({channels_out},)")

    size = output_size(tuple(input.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)
    if min(size) < 1:
        raise ValueError(f"input of size {tuple(input.shape[2:])} is smaller than the kernel {tuple(weight.shape[2:])}")
    taps = math.prod(weight.shape[2:])
    allowed = [(input.shape[0], offset_groups * taps * axes, *size) for axes in (dimensions, dimensions - 1)]
    if tuple(offset.shape) not in allowed:
        raise ValueError(
            f"offset has shape {tuple(offset.shape)}; expected {allowed[0]} ({dimensions} axes displaced) or "
            f"{allowed[1]} (the last {dimensions - 1} displaced), with offset_groups = {offset_groups}"
        )
    if mask is not None and tuple(mask.shape) != (input.shape[0], offset_groups * taps, *size):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; expected {(input.shape[0], offset_groups * taps, *size)}"
        )


# Schemas are spelt out, since what torch.library reads from annotations differs from version to version.
@torch.library.custom_op(
    "nnunet_godc::deform_conv",
    mutates_args=(),
    schema="(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, int[] padding, "
    "int[] dilation, int offset_groups) -> Tensor",
)
def _deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_groups: int,
) -> Tensor:
    arguments = Arguments(input, offset, weight, mask, padding, dilation, offset_groups, stride)
    return backends.select(arguments).forward(arguments, bias)


@torch.library.custom_op(
    "nnunet_godc::deform_conv_backward",
    mutates_args=(),
    schema="(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
    "int[] padding, int[] dilation, int offset_groups) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _deform_conv_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = Arguments(input, offset, weight, mask, padding, dilation, offset_groups, stride)
    return backends.select(arguments).backward(grad_output, arguments)


@_deform_conv.register_fake
def _(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_groups: int,
) -> Tensor:
    size = output_size(tuple(input.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)
    return input.new_empty(input.shape[0], weight.shape[0], *size)


@_deform_conv_backward.register_fake
def _(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape),
        offset.new_empty(offset.shape),
        weight.new_empty(weight.shape),
        grad_output.new_empty(0) if mask is None else mask.new_empty(mask.shape),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, ctx.stride, ctx.padding, ctx.dilation, ctx.offset_groups = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    grad_input, grad_offset, grad_weight, grad_mask = _deform_conv_backward(
        grad_output, input, offset, weight, mask, ctx.stride, ctx.padding, ctx.dilation, ctx.offset_groups
    )
    grad_bias = None
    if ctx.needs_input_grad[3]:
        spatial = tuple(range(2, grad_output.dim()))
        grad_bias = grad_output.sum((0, *spatial))
    return grad_input, grad_offset, grad_weight, grad_bias, None if mask is None else grad_mask, *[None] * 4


_deform_conv.register_autograd(_gradients, setup_context=_save_for_backward)

# torch.library.register_autocast casts every tensor to one dtype fixed in advance. Here the dtype is the one that the
# surrounding autocast names, and offsets keep theirs, as rounding positions would move the samples.
_library = torch.library.Library("nnunet_godc", "FRAGMENT")


def _register_autocast(device_type: str, dispatch_key: str) -> None:
    def under_autocast(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        offset_groups: int,
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)

        def cast(tensor: Tensor) -> Tensor:
            return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

        with torch.autocast(device_type, enabled=False):
            output: Tensor = _deform_conv(
                cast(input),
                offset,
                cast(weight),
                None if bias is None else cast(bias),
                None if mask is None else cast(mask),
                stride,
                padding,
                dilation,
                offset_groups,
            )
        return output

    _library.impl("deform_conv", under_autocast, dispatch_key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
