"""Deformable convolution on the CPU: samples gathered by compiled loops, multiplied by PyTorch, a chunk at a time.

A chunk's samples ("columns") fit into the processor's cache, where the matrix product finds them; they never exist for
the whole map. The loops run in threads of ours, as many as PyTorch uses; a forked process makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nnunet_godc import compiled_loops
from nnunet_godc.ops._geometry import Arguments, Geometry, channel_groups

CHUNK_BYTES = 4 * 2**20  # of columns: they stay in the cache between being gathered and being multiplied
CHANNELS_PER_THREAD = 16  # of the scatter: a cache line, so that threads share none

Array = NDArray[Any]


@cache
def why_unusable() -> str | None:
    """None where numba is installed and compiles the loops, else the reason; a failure is warned about once."""
    return compiled_loops.why_unusable(_try, "deformable convolutions take the slower reference")


def _try() -> None:
    _kernels()
    one = torch.ones(1, 1, 2, 2, 2)
    offset = torch.zeros(1, 3, 2, 2, 2)
    kernel = torch.ones(1, 1, 1, 1, 1)
    arguments = Arguments(one, offset, kernel, None, [0, 0, 0], [1, 1, 1], 1)
    backward(one, arguments)
    forward(arguments, None)


def supports(arguments: Arguments) -> bool:
    """Whether this call can be computed here: on the CPU, in single precision or less, two or three axes displaced."""
    input = arguments.input
    single = input.device.type == "cpu" and input.dtype != torch.float64
    return single and arguments.displaced_axes in (2, 3) and input.numel() > 0


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """Deformable convolution; arguments and result as in :func:`nnunet_godc.ops.deform_conv`."""
    call = _Call(arguments)
    weight = arguments.weight
    output = torch.empty(call.geometry.batch, weight.shape[0], call.geometry.voxels_out)  # (B, out, L)
    columns = call.new_columns()
    for sample in range(call.geometry.batch):
        for first, last in call.chunks():
            call.by_voxels(_kernels().gather, sample, first, last, call.table[sample], (columns,))
            samples = call.samples(columns, last - first)
            for inputs, outputs, kernel in call.weight_groups():
                products = kernel @ samples[:, :, inputs].flatten(1).t()  # (out / groups, l)
                output[sample, outputs, first:last] = products
    if bias is not None:
        output += bias[:, None]
    return output.view(call.geometry.batch, -1, *call.geometry.output_size).to(arguments.input.dtype)


def backward(grad_output: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by input, offset, weight and mask; see the reference's for the equations."""
    call = _Call(arguments)
    input, offset, weight, mask, *_ = arguments
    batch = call.geometry.batch
    grad_output = grad_output.flatten(2)  # (B, out, L)
    grad_table = torch.zeros(call.table.shape).numpy()
    grad_offset = torch.empty(call.offset.shape).numpy()
    grad_mask = torch.empty(call.mask.shape).numpy()
    grad_weight = torch.zeros(weight.shape[0], call.geometry.taps * weight.shape[1])  # (out, taps * in / groups)
    columns, grad_columns = call.new_columns(), call.new_columns()
    rows, weights = call.new_points()
    for sample in range(batch):
        for first, last in call.chunks():
            grad_rows = grad_output[sample, :, first:last].float()  # (out, l)
            for inputs, outputs, kernel in call.weight_groups():
                call.fill(grad_columns, last - first, inputs, grad_rows[outputs].t(), kernel)
            gradients = (grad_columns, columns, rows, weights, grad_offset[sample], grad_mask[sample])
            call.by_voxels(_kernels().differentiate, sample, first, last, call.table[sample], gradients)
            call.scatter(rows, weights, last - first, grad_columns, grad_table[sample])
            samples = call.samples(columns, last - first)
            for inputs, outputs, _ in call.weight_groups():
                grad_weight[outputs] += grad_rows[outputs] @ samples[:, :, inputs].flatten(1)
    grad_input = call.without_padding(torch.from_numpy(grad_table).view(batch, -1, call.channels))  # (B, P, in)
    taps_last = grad_weight.view(weight.shape[0], call.geometry.taps, -1).transpose(1, 2).contiguous()
    return (
        grad_input.transpose(1, 2).contiguous().view(input.shape).to(input.dtype),
        torch.from_numpy(grad_offset).view(offset.shape).to(offset.dtype),
        taps_last.view(weight.shape).to(weight.dtype),
        grad_output.new_empty(0) if mask is None else torch.from_numpy(grad_mask).view(mask.shape).to(mask.dtype),
    )


class _Call:
    """The arguments of one call as the loops take them: float32 arrays, 2D as 3D of one slice."""

    def __init__(self, arguments: Arguments) -> None:
        input, offset, weight, mask, _, _, offset_groups = arguments
        self.geometry = geometry = Geometry.of(arguments)
        batch, taps = geometry.batch, geometry.taps
        self._per_group = input.shape[1] // offset_groups
        self._padding = -self._per_group % compiled_loops.LANES  # per offset group
        self.channels = offset_groups * (self._per_group + self._padding)
        table = input.detach().float().flatten(2).transpose(1, 2)  # (B, P, in)
        if self._padding:
            table = F.pad(table.unflatten(2, (offset_groups, -1)), (0, self._padding))
        self.table: Array = table.contiguous().flatten(1).numpy()  # (B, P * channels)
        self.offset: Array = offset.detach().float().reshape(batch, -1, geometry.voxels_out).contiguous().numpy()
        self.mask: Array = np.empty((batch, 0, 0), dtype=np.float32)
        if mask is not None:
            self.mask = mask.detach().float().reshape(batch, -1, geometry.voxels_out).contiguous().numpy()
        self.weight = weight.detach().float().flatten(2).transpose(1, 2).flatten(1).contiguous()  # (out, taps * in)
        self.groups = input.shape[1] // weight.shape[1]

        places = np.stack(np.unravel_index(np.arange(taps), geometry.kernel), axis=1)
        places = places * geometry.dilation - np.array(geometry.padding)
        self._taps: Array = np.concatenate([np.zeros((taps, 3 - places.shape[1]), np.int64), places], axis=1)
        self._size = np.array((1, *geometry.input_size)[-3:], dtype=np.int64)
        self._output_size = np.array((1, *geometry.output_size)[-3:], dtype=np.int64)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of output voxels whose columns fit into the cache."""
        for first in range(0, self.geometry.voxels_out, self._chunk):
            yield first, min(first + self._chunk, self.geometry.voxels_out)

    @property
    def _chunk(self) -> int:
        per_voxel = 4 * self.geometry.taps * self.channels
        return min(self.geometry.voxels_out, max(64, CHUNK_BYTES // per_voxel))

    @property
    def _places(self) -> int:
        return self._chunk * self.geometry.taps

    def new_columns(self) -> Array:
        """Room for a chunk's columns, (voxels * taps * channels,); PyTorch's, so that its tools for memory see it."""
        columns: Array = torch.zeros(self._places * self.channels).numpy()
        return columns

    def new_points(self) -> tuple[Array, Array]:
        """Room for the grid points around a chunk's sampling positions, as rows of the table, and their weights."""
        shape = self._places * self.geometry.offset_groups * self._points
        return torch.empty(shape, dtype=torch.int32).numpy(), torch.empty(shape).numpy()

    @property
    def _points(self) -> int:
        return 1 << self.geometry.displaced_axes

    def samples(self, columns: Array, voxels: int) -> Tensor:
        """The columns of so many voxels, (voxels, taps, in)."""
        return self.without_padding(torch.from_numpy(columns).view(self._chunk, -1, self.channels)[:voxels])

    def without_padding(self, values: Tensor) -> Tensor:
        """(..., channels) to (..., in)."""
        groups = self.geometry.offset_groups
        by_group: Tensor = values.unflatten(-1, (groups, -1))
        return by_group[..., : self._per_group].flatten(-2)

    def fill(self, columns: Array, voxels: int, inputs: slice, left: Tensor, right: Tensor) -> None:
        """Set the columns of so many voxels and of some input channels to a product, (voxels, taps * inputs)."""
        into = torch.from_numpy(columns).view(self._chunk, -1, self.channels)[:voxels]
        if self.groups == 1 and not self._padding:
            torch.mm(left, right, out=into.flatten(1))
        else:
            channels = torch.arange(inputs.start, inputs.stop)
            padded = channels + channels // self._per_group * self._padding
            into[:, :, padded] = (left @ right).unflatten(1, (self.geometry.taps, -1))

    def weight_groups(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Input channels, output channels and kernel (out, taps * in) of each group of the convolution."""
        channels_in = self.weight.shape[1] // self.geometry.taps * self.groups
        for inputs, outputs in channel_groups(channels_in, len(self.weight), self.groups):
            yield inputs, outputs, self.weight[outputs]

    def by_voxels(
        self, loop: Callable[..., None], sample: int, first: int, last: int, table: Array, arrays: tuple[Array, ...]
    ) -> None:
        """Run a loop over the voxels of a chunk, a part of them in every thread."""
        run = partial(loop, *self._arguments(sample, table), first)
        parts = compiled_loops.parts(first, last, torch.get_num_threads())
        compiled_loops.in_threads([partial(run, start, stop, *arrays) for start, stop in parts])

    def scatter(self, rows: Array, weights: Array, voxels: int, grad_columns: Array, grad_table: Array) -> None:
        """Add to the table's gradient what a chunk gives, a part of the channels in every thread."""
        groups, places = self.geometry.offset_groups, voxels * self.geometry.taps
        run = partial(_kernels().scatter, rows, weights, grad_columns, grad_table, self._points, groups, places)
        lines = -(-self.channels // CHANNELS_PER_THREAD)
        parts = compiled_loops.parts(0, lines, min(torch.get_num_threads(), lines))
        bounds = [
            (CHANNELS_PER_THREAD * first, min(CHANNELS_PER_THREAD * last, self.channels)) for first, last in parts
        ]
        compiled_loops.in_threads([partial(run, self.channels, begin, end) for begin, end in bounds])

    def _arguments(self, sample: int, table: Array) -> tuple[Any, ...]:
        return (
            table,
            self.offset[sample],
            self.mask[sample],
            self._taps,
            self._size,
            self._output_size,
            self.geometry.offset_groups,
        )


@cache
def _kernels() -> ModuleType:
    return compiled_loops.load("nnunet_godc.ops._numba_kernels")
