"""Deformable convolution on the CPU by compiled loops, a tile of voxels at a time.

The samples of a tile ("columns") stay in the processor's cache, where the matrix product finds them; they never exist
for the whole map. The loops run in threads of ours, as many as PyTorch uses; a forked process makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nnunet_godc.kernels import numba as compiling
from nnunet_godc.kernels.numba import LANES, TILE
from nnunet_godc.ops._geometry import Arguments, Geometry, channel_groups

CHUNK_BYTES = 4 * 2**20  # of columns: they stay in the cache until they are scattered
CHANNELS_PER_THREAD = 16  # of the scatter: a cache line, so that threads share none

Array = NDArray[Any]


@cache
def why_unusable() -> str | None:
    """None where numba is installed and compiles the loops, else the reason; a failure is warned about once."""
    return compiling.why_unusable(_try, "deformable convolutions take the slower reference")


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
    return single and arguments.displaced_axes in (2, 3) and not arguments.is_empty


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """Deformable convolution; arguments and result as in :func:`nnunet_godc.ops.deform_conv`."""
    call = _Call(arguments)
    output = torch.empty(call.geometry.batch, len(arguments.weight), call.geometry.voxels_out)  # (B, out, L)
    weight = call.weight_by_channel()
    for sample in range(call.geometry.batch):
        run = partial(_kernels().forward, *call.arrays(sample), weight)
        call.by_voxels(run, 0, call.geometry.voxels_out, [(output[sample].numpy(),)] * torch.get_num_threads())
    if bias is not None:
        output += bias[:, None]
    return output.view(call.geometry.batch, -1, *call.geometry.output_size).to(arguments.input.dtype)


def backward(grad_output: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by input, offset, weight and mask; see the reference's for the equations.

    Every thread adds up a part of the weight's, whose last digits depend on how many threads there are.
    """
    call = _Call(arguments)
    input, offset, weight, mask, *_ = arguments
    batch = call.geometry.batch
    grad_rows: Array = grad_output.detach().float().flatten(2).contiguous().numpy()  # (B, out, L)
    grad_table = torch.zeros(call.table.shape).numpy()
    grad_offset = torch.empty(call.offset.shape).numpy()
    grad_mask = torch.empty(call.mask.shape).numpy()
    by_output = call.weight_by_output()
    grad_weights = torch.zeros(torch.get_num_threads(), len(by_output))
    grad_columns, (rows, weights) = call.new_columns(), call.new_nodes()
    for sample in range(batch):
        run = partial(_kernels().differentiate, *call.arrays(sample), by_output, grad_rows[sample])
        for first, last in call.chunks():
            gradients = (grad_columns, rows, weights, grad_offset[sample], grad_mask[sample])
            of_threads = [(*gradients, grad_weight) for grad_weight in grad_weights.numpy()]
            call.by_voxels(partial(run, first), first, last, of_threads)
            call.scatter(rows, weights, last - first, grad_columns, grad_table[sample])
    grad_input = call.without_padding(torch.from_numpy(grad_table).view(batch, -1, call.channels))  # (B, P, in)
    return (
        grad_input.transpose(1, 2).contiguous().view(input.shape).to(input.dtype),
        torch.from_numpy(grad_offset).view(offset.shape).to(offset.dtype),
        call.weight_like(grad_weights.sum(0)).to(weight.dtype),
        grad_output.new_empty(0) if mask is None else torch.from_numpy(grad_mask).view(mask.shape).to(mask.dtype),
    )


class _Call:
    """The arguments of one call as the loops take them: float32 arrays, 2D as 3D of one slice."""

    def __init__(self, arguments: Arguments) -> None:
        input, offset, weight, mask, _, _, offset_groups, _ = arguments
        self.geometry = geometry = Geometry.of(arguments)
        batch, taps = geometry.batch, geometry.taps
        self._weight = weight.detach().float().flatten(2).transpose(1, 2)  # (out, taps, in / groups)
        self._per_group = input.shape[1] // offset_groups
        self._padding = -self._per_group % LANES  # per offset group
        self.channels = offset_groups * (self._per_group + self._padding)
        table = input.detach().float().flatten(2).transpose(1, 2)  # (B, P, in)
        self.table: Array = self._with_padding(table).contiguous().flatten(1).numpy()  # (B, P * channels)
        self.offset: Array = offset.detach().float().reshape(batch, -1, geometry.voxels_out).contiguous().numpy()
        self.mask: Array = np.empty((batch, 0, 0), dtype=np.float32)
        if mask is not None:
            self.mask = mask.detach().float().reshape(batch, -1, geometry.voxels_out).contiguous().numpy()

        places = np.stack(np.unravel_index(np.arange(taps), geometry.kernel), axis=1)
        places = places * geometry.dilation - np.array(geometry.padding)
        self._taps: Array = np.concatenate([np.zeros((taps, 3 - places.shape[1]), np.int64), places], axis=1)
        self._size = np.array((1, *geometry.input_size)[-3:], dtype=np.int64)
        self._output_size = np.array((1, *geometry.output_size)[-3:], dtype=np.int64)
        self._stride = np.array((1, *geometry.stride)[-3:], dtype=np.int64)
        self._groups = list(channel_groups(input.shape[1], len(weight), input.shape[1] // weight.shape[1]))
        self._spans = np.array([self._span(inputs, outputs) for inputs, outputs in self._groups], dtype=np.int64)

    def _span(self, inputs: slice, outputs: slice) -> tuple[int, int, int, int]:
        """The channels of the table in whole vectors that hold a group's inputs, and its outputs."""
        ends = inputs.start, inputs.stop - 1
        first, last = (channel + channel // self._per_group * self._padding for channel in ends)
        first = first // LANES * LANES
        return first, -(-(last + 1 - first) // LANES) * LANES, outputs.start, outputs.stop - outputs.start

    def _with_padding(self, values: Tensor) -> Tensor:
        """(..., in) to (..., channels)."""
        if not self._padding:
            return values
        return F.pad(values.unflatten(-1, (-1, self._per_group)), (0, self._padding)).flatten(-2)

    def without_padding(self, values: Tensor) -> Tensor:
        """(..., channels) to (..., in)."""
        by_group: Tensor = values.unflatten(-1, (-1, self._per_group + self._padding))
        return by_group[..., : self._per_group].flatten(-2)

    def _matrices(self) -> Iterator[Tensor]:
        """For each group of the convolution (out, taps, channels of its span), 0 for channels that are not its own."""
        for (inputs, outputs), (first, length, _, _) in zip(self._groups, self._spans.tolist(), strict=True):
            own = self._weight[outputs]
            everywhere = own.new_zeros(*own.shape[:2], self.geometry.offset_groups * self._per_group)
            everywhere[:, :, inputs] = own
            yield self._with_padding(everywhere)[:, :, first : first + length]

    def weight_by_channel(self) -> Array:
        """The weight as `forward` takes it."""
        matrices = [F.pad(matrix, (0, 0, 0, 0, 0, -len(matrix) % LANES)) for matrix in self._matrices()]
        array: Array = torch.cat([matrix.permute(1, 2, 0).flatten() for matrix in matrices]).numpy()
        return array

    def weight_by_output(self) -> Array:
        """The weight as `differentiate` takes it."""
        array: Array = torch.cat([matrix.flatten() for matrix in self._matrices()]).numpy()
        return array

    def weight_like(self, by_output: Tensor) -> Tensor:
        """What lies as `weight_by_output`, as a tensor (out, in / groups, *kernel)."""
        taps = self.geometry.taps
        gradient, at = torch.empty_like(self._weight, memory_format=torch.contiguous_format), 0
        for (inputs, outputs), (first, length, _, made) in zip(self._groups, self._spans.tolist(), strict=True):
            matrix = by_output[at : at + made * taps * length].view(made, taps, length)
            padded = F.pad(matrix, (first, self.channels - first - length))
            gradient[outputs] = self.without_padding(padded)[:, :, inputs]
            at += matrix.numel()
        by_channel: Tensor = gradient.transpose(1, 2).contiguous().unflatten(2, self.geometry.kernel)
        return by_channel

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of output voxels whose columns fit into the cache; all but the last are whole tiles."""
        for first in range(0, self.geometry.voxels_out, self._chunk):
            yield first, min(first + self._chunk, self.geometry.voxels_out)

    @property
    def _chunk(self) -> int:
        per_tile = 4 * TILE * self.geometry.taps * self.channels
        return TILE * max(torch.get_num_threads(), CHUNK_BYTES // per_tile)

    def new_columns(self) -> Array:
        """Room for a chunk's columns, (voxels * taps * channels,); PyTorch's, so that its tools for memory see it."""
        voxels = min(self._chunk, self.geometry.voxels_out)
        columns: Array = torch.empty(voxels * self.geometry.taps * self.channels).numpy()
        return columns

    def new_nodes(self) -> tuple[Array, Array]:
        """Room for the nodes of a chunk, as rows of the table and their shares."""
        voxels = min(self._chunk, -(-self.geometry.voxels_out // TILE) * TILE)
        shape = voxels * self.geometry.offset_groups * self.geometry.taps * self._points
        return torch.empty(shape, dtype=torch.int32).numpy(), torch.empty(shape).numpy()

    @property
    def _points(self) -> int:
        return 1 << self.geometry.displaced_axes

    def by_voxels(
        self, loop: Callable[..., None], first: int, last: int, of_threads: Sequence[tuple[Array, ...]]
    ) -> None:
        """Run a loop over a range of voxels, some of its tiles in every thread with the thread's own arrays."""
        parts = compiling.parts(0, -(-(last - first) // TILE), len(of_threads))
        bounds = [(first + TILE * begin, min(first + TILE * end, last)) for begin, end in parts]
        compiling.in_threads(
            [partial(loop, *bound, *arrays) for bound, arrays in zip(bounds, of_threads, strict=False)]
        )

    def scatter(self, rows: Array, weights: Array, voxels: int, grad_columns: Array, grad_table: Array) -> None:
        """Add to the table's gradient what a chunk gives, a part of the channels in every thread."""
        of_chunk = (self._points, self.geometry.offset_groups, self.geometry.taps, voxels, self.channels)
        run = partial(_kernels().scatter, rows, weights, grad_columns, grad_table, *of_chunk)
        lines = -(-self.channels // CHANNELS_PER_THREAD)
        parts = compiling.parts(0, lines, min(torch.get_num_threads(), lines))
        bounds = [
            (CHANNELS_PER_THREAD * first, min(CHANNELS_PER_THREAD * last, self.channels)) for first, last in parts
        ]
        compiling.in_threads([partial(run, begin, end) for begin, end in bounds])

    def arrays(self, sample: int) -> tuple[Any, ...]:
        """What all loops over voxels begin with."""
        return (
            self.table[sample],
            self.offset[sample],
            self.mask[sample],
            self._taps,
            self._size,
            self._output_size,
            self._stride,
            self.geometry.offset_groups,
            self._spans,
        )


@cache
def _kernels() -> ModuleType:
    return compiling.load("nnunet_godc.ops._numba_kernels")
