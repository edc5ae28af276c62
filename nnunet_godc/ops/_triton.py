"""Deformable convolution on NVIDIA GPUs: Triton kernels that gather, multiply and scatter without a column buffer.

What bounds them is gathering rows and adding to rows, not arithmetic; the design follows from that. See
`_triton_points` for how a sample is addressed, `_triton_kernels` for the three passes, `_triton_launch` for how they
are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from nnunet_godc.kernels import triton as launching
from nnunet_godc.ops._geometry import Arguments
from nnunet_godc.ops._triton_launch import Call

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Temporary memory, the float32 gradient of the input above all: samples of the batch are taken one after the other
# when they would need more together.
WORKSPACE = 256 * 2**20

# of a call, from the output's gradient; fills those by offset and mask and returns the input's, shaped like the table
BySamples = Callable[[Call, Tensor, Tensor, Tensor | None], Tensor]


@cache
def why_unusable() -> str | None:
    """None where a GPU runs the kernels, else the reason; a failure of the compiler is warned about once."""
    return launching.why_unusable(_try, "deformable convolutions take the slower reference")


def _try() -> None:
    one = torch.ones(1, 16, 2, 2, device="cuda", dtype=torch.float16)
    arguments = Arguments(one, one[:, :2], one[:, :, :1, :1], None, [0, 0], [1, 1], 1)
    forward(arguments, None)
    backward(one[:, :1], arguments)


def supports(arguments: Arguments) -> bool:
    """Whether this call can be computed here: on a GPU, all channels in one group, two or three axes displaced."""
    input, offset, weight, *_ = arguments
    return (
        input.is_cuda
        and input.dtype in DTYPES
        and weight.dtype == input.dtype
        and offset.dtype in DTYPES
        and input.shape[1] == weight.shape[1]
        and not arguments.is_empty
        and arguments.displaced_axes in (2, 3)
        # positions are read in pairs along x, and rows are counted by 32 bits
        and input.shape[-1] > 1
        and max(input.shape[2:].numel(), offset.shape[2:].numel()) < 2**31
    )


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """Deformable convolution; arguments and result as in :func:`nnunet_godc.ops.deform_conv`."""
    input, offset, weight, *_ = arguments
    output = input.new_empty(input.shape[0], weight.shape[0], *offset.shape[2:])
    for part in _parts(input, bytes_per_value=input.element_size()):
        Call(arguments.of_samples(part)).forward(bias, output[part]).run()
    return output


def backward(
    grad_output: Tensor, arguments: Arguments, gradient_by_samples: BySamples | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by input, offset, weight and mask; see the reference's for the equations.

    With `torch.use_deterministic_algorithms` they are the same in every run on the same GPU.

    Args:
        grad_output, arguments: as the reference takes them.
        gradient_by_samples: another kernel instead of Triton's.
    """
    input, offset, weight, mask, *_ = arguments
    grad_output = grad_output.contiguous()
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format)
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    grad_mask = None if mask is None else torch.empty_like(mask, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
    by_samples = gradient_by_samples or _gradient_by_samples
    for part in _parts(input, bytes_per_value=8 if torch.are_deterministic_algorithms_enabled() else 4):
        call = Call(arguments.of_samples(part))
        by_weight = call.gradient_by_weight(grad_output[part])
        by_weight.run()
        grad_weight += call.weight_like(by_weight.arguments["partial"].sum(0))
        by_mask = None if grad_mask is None else grad_mask[part]
        grad_input[part] = call.input_like(by_samples(call, grad_output[part], grad_offset[part], by_mask))
    return (
        grad_input,
        grad_offset,
        grad_weight.to(weight.dtype),
        grad_output.new_empty(0) if grad_mask is None else grad_mask,
    )


def _gradient_by_samples(call: Call, grad_output: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> Tensor:
    """Fills the gradients by offset and mask; returns the input's, shaped like the call's table."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    factor = _fixed_point(call, grad_output) if deterministic else None
    grad_table = torch.zeros_like(call.table, dtype=torch.int64 if deterministic else torch.float32)
    call.gradient_by_samples(grad_output, grad_table, grad_offset, grad_mask, factor).run()
    return grad_table if factor is None else grad_table / factor


def _fixed_point(call: Call, grad_output: Tensor) -> Tensor:
    """The power of two by which the input's gradient is multiplied to be added up in 64-bit integers.

    |dx| <= sum over all samples that read x of |dS|, and |dS| <= max |dy| * max_kc sum_o |W_okc|, times |m|; the factor
    takes the largest sum possible to 2^62. A gradient that is infinite, or what is no number anywhere, makes the
    factor, and with it the result, no number: GradScaler finds it.
    """
    bound = grad_output.abs().amax().double() * call.kernel.abs().sum(1, dtype=torch.float64).amax()
    if call.mask is not None:
        bound = bound * call.mask.abs().amax().clamp_min(1)
    bound = bound * call.geometry.voxels_out * call.geometry.taps
    # float32 holds no power of two beyond 2^127; where all is zero, any factor will do
    factor = torch.exp2(torch.floor(62 - torch.log2(bound)).clamp_max(120))
    numbers = ~call.offset.amax().isnan()
    return torch.where(bound.isfinite() & numbers, factor, float("nan")).float()


def _parts(input: Tensor, bytes_per_value: int) -> Iterator[slice]:
    """Ranges of samples of the batch, as long as their temporary memory is not too much."""
    samples = max(1, WORKSPACE // (bytes_per_value * input[0].numel()))
    for start in range(0, len(input), samples):
        yield slice(start, start + samples)
