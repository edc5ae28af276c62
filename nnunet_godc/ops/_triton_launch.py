"""What the Triton kernels are launched with: tensors laid out for them, and how the work is cut.

How it is cut follows from channels and dtype, so that a network's kernels are compiled once, whatever the size of its
patches, and kept on disk by Triton. Only small maps, which would leave most of the GPU idle, are cut finer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_godc.kernels.triton import WARP, Launch
from nnunet_godc.ops._geometry import Arguments, Geometry

KERNELS = "nnunet_godc.ops._triton_kernels"
# A program waits for memory most of its time; fewer would leave the GPU waiting too. The gradient by weight, whose
# programs differ in what their tiles cost, is faster with more, as long as their partial sums are not too large.
PROGRAMS_PER_PROCESSOR = 4
PROGRAMS_BY_WEIGHT = 16
PARTIAL_SUMS = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Blocks:
    """What one program works on.

    Its voxels are fewer than its threads: each thread then computes the positions of its own rows, which Triton would
    otherwise hand round in shared memory, with dozens of barriers per tap. Channels and outputs are powers of two, at
    least the 16 that tensor cores take. All numbers are the fastest of those tried on an H200, or close to it.

    Attributes:
        tile: output voxels along (z, y, x).
        channels, outputs: at a time.
        warps: of 32 threads.
        registers: that a thread may have, if fewer than it would take: then more programs fit beside each other.
    """

    tile: tuple[int, int, int]
    channels: int
    outputs: int
    warps: int
    registers: int | None = None


class Call:
    """The arguments of one deformable convolution as the kernels take them; 2D as 3D of one slice."""

    def __init__(self, arguments: Arguments) -> None:
        input, offset, weight, mask, _, _, offset_groups, _ = arguments
        self.geometry = Geometry.of(arguments)
        self.entries = offset_groups * self.geometry.taps
        self.channels = input.shape[1] // offset_groups
        self.outputs = weight.shape[0]
        self.block_channels = max(block for block in (16, 32, 64) if _up_to(self.channels, 16) % block == 0)
        # All outputs in one block as long as the sums fit into registers: each further one gathers all samples again.
        whole = max(16, _power_of_two(self.outputs))
        self.block_outputs = whole if whole <= 256 else 256 if self.outputs % 256 == 0 else 64
        self.table = self._rows(input)
        self.kernel = self._kernel(weight)
        self.offset = _flat(offset)
        self.mask = None if mask is None else _flat(mask)

    def forward(self, bias: Tensor | None, output: Tensor) -> Launch:
        """The launch that fills `output` (B, outputs, *output size)."""
        blocks = self._gathering_blocks()
        grid = (self._tiles(blocks), self.kernel.shape[1] // blocks.outputs)
        arguments = {"weight": self.kernel.transpose(1, 2).contiguous(), "bias": bias, "output": output}
        return self._launch("forward", grid, blocks, arguments)

    def gradient_by_samples(
        self,
        grad_output: Tensor,
        grad_table: Tensor,
        grad_offset: Tensor,
        grad_mask: Tensor | None,
        fixed_point: Tensor | None,
    ) -> Launch:
        """The launch that adds to `grad_table`, shaped like `table`, and fills the gradients of offset and mask."""
        blocks = self._scattering_blocks()
        tiles = self._tiles(blocks)
        parts = min(self.entries, math.ceil(PROGRAMS_PER_PROCESSOR * self._processors() / tiles))
        # the order in which the kernel takes channels of a block
        by_block = self.kernel.unflatten(2, (-1, 4, blocks.channels // 8, 2))
        arguments = {
            "weight": by_block.transpose(-3, -2).flatten(2),
            "grad_output": grad_output,
            "grad_table": grad_table,
            "grad_offset": grad_offset,
            "grad_mask": grad_mask,
            "fixed_point": fixed_point,
            "entries": math.ceil(self.entries / parts),
        }
        return self._launch("gradient_by_samples", (tiles, parts), blocks, arguments)

    def gradient_by_weight(self, grad_output: Tensor) -> Launch:
        """The launch that fills its argument `partial`, (parts, entries, OUT, C); see `weight_like`."""
        blocks = self._gathering_blocks()
        tiles = self._tiles(blocks)
        weight_blocks = (self.kernel.shape[1] // blocks.outputs, self.kernel.shape[2] // blocks.channels)
        programs = math.ceil(PROGRAMS_BY_WEIGHT * self._processors() / (self.entries * math.prod(weight_blocks)))
        parts = min(tiles, programs, max(1, PARTIAL_SUMS // (4 * self.kernel.numel())))
        partial = self.kernel.new_empty((parts, *self.kernel.shape), dtype=torch.float32)
        arguments = {"grad_output": grad_output, "partial": partial, "all_tiles": tiles, "parts": parts}
        return self._launch("gradient_by_weight", (self.entries * parts, *weight_blocks), blocks, arguments)

    def input_like(self, rows: Tensor) -> Tensor:
        """What is shaped like `table` as (B, in, *input size); a view where that can be."""
        rows = rows[..., : self.channels].flatten(-2).movedim(-1, 1)
        return rows if len(self.geometry.input_size) == 3 else rows.squeeze(2)

    def weight_like(self, kernel: Tensor) -> Tensor:
        """What is shaped like `kernel`, (entries, OUT, C), as (out, in, *kernel)."""
        kernel = kernel[:, : self.outputs, : self.channels].unflatten(0, (-1, self.geometry.taps))
        return kernel.permute(2, 0, 3, 1).reshape(self.outputs, -1, *self.geometry.kernel)

    def _rows(self, input: Tensor) -> Tensor:
        """The input as (B, z, y, x, offset groups, C), without a copy if that is how it lies in memory."""
        rows = (input.unsqueeze(2) if input.dim() == 4 else input).movedim(1, -1)
        return _padded(rows.unflatten(-1, (-1, self.channels)), _up_to(self.channels, self.block_channels))

    def _kernel(self, weight: Tensor) -> Tensor:
        """The weight as (entries, OUT, C)."""
        kernel = weight.flatten(2).unflatten(1, (-1, self.channels)).permute(1, 3, 0, 2).flatten(0, 1)
        kernel = _padded(kernel, _up_to(self.channels, self.block_channels)).transpose(1, 2)
        return _padded(kernel, _up_to(self.outputs, self.block_outputs)).transpose(1, 2).contiguous()

    def _launch(self, kernel: str, grid: tuple[int, ...], blocks: Blocks, arguments: dict[str, Any]) -> Launch:
        geometry = self.geometry
        shared: dict[str, Any] = {
            "table": self.table,
            "offset": self.offset,
            "offset_strides": self.offset.stride()[:2],
            "mask": self.mask,
            "mask_strides": (0, 0) if self.mask is None else self.mask.stride()[:2],
            "size": _in_3d(geometry.input_size, 1),
            "output_size": _in_3d(geometry.output_size, 1),
            "stride": _in_3d(geometry.stride, 1),
            "padding": _in_3d(geometry.padding, 0),
            "step": _in_3d(geometry.dilation, 1),
            "tiles": self._tiles(blocks) // geometry.batch,
        }
        constants = {
            "OUTPUTS": self.outputs,
            "KERNEL": _in_3d(geometry.kernel, 1),
            "AXES": geometry.displaced_axes,
            "GROUPS": geometry.offset_groups,
            "C": self.kernel.shape[2],
            "OUT": self.kernel.shape[1],
            "BLOCK_C": blocks.channels,
            "BLOCK_OUT": blocks.outputs,
            "TILE": blocks.tile,
            "PRECISION": _precision(),
        }
        return Launch(KERNELS, kernel, grid, {**shared, **arguments}, constants, blocks.warps, blocks.registers)

    def _gathering_blocks(self) -> Blocks:
        """For the kernels whose sums are long: 128 bytes of a row at once, 16 per thread."""
        item = self.table.element_size()
        warps = 8 if self.block_outputs * item >= 256 else 4
        channels = min(128 // item, self.block_channels)
        # one load of 16 bytes per thread at least
        smallest = 16 // item * WARP * warps // channels
        registers = 96 if self.block_outputs <= 32 else None
        return Blocks(self._tile(64, smallest), channels, self.block_outputs, warps, registers)

    def _scattering_blocks(self) -> Blocks:
        """For the kernel that adds to memory: 4 channels per thread, which is the widest atomic operation.

        What it adds bounds it on large maps, however it is cut. It takes as few voxels as tensor cores do and as many
        channels as can be, since a voxel's position is computed for each block of them.
        """
        channels = min(64, self.block_channels)
        tile = self._tile(16, 16)
        return Blocks(tile, channels, min(128, self.block_outputs), math.prod(tile) * channels // (4 * WARP))

    def _processors(self) -> int:
        return _processors(self.table.device)

    def _tile(self, voxels: int, smallest: int) -> tuple[int, int, int]:
        """A block of so many output voxels, or of fewer if the map is small; powers of two along (z, y, x)."""
        voxels_out = self.geometry.batch * self.geometry.voxels_out
        while voxels > smallest and 2 * voxels_out < voxels * self._processors():
            voxels //= 2
        limits = [_power_of_two(extent) for extent in _in_3d(self.geometry.output_size, 1)]
        # Along x as many as make a whole sector of 32 bytes of a 16-bit map; then as much of a cube as can be.
        tile = [1, 1, min(16, limits[2])]
        while math.prod(tile) < voxels:
            axis = min((axis for axis in (1, 0) if tile[axis] < limits[axis]), key=lambda axis: tile[axis], default=2)
            tile[axis] *= 2
        return tile[0], tile[1], tile[2]

    def _tiles(self, blocks: Blocks) -> int:
        size = _in_3d(self.geometry.output_size, 1)
        return self.geometry.batch * math.prod(math.ceil(n / part) for n, part in zip(size, blocks.tile, strict=True))


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H200's for tensors without memory, which kernels are compiled ahead of time with."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132 if device.type == "meta" else 1


def _precision() -> str:
    """Of products of float32, as PyTorch's own matrix products have it."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # where it exists, reading the older switch may raise
        return "tf32" if matmul.fp32_precision == "tf32" else "ieee"
    return "tf32" if matmul.allow_tf32 else "ieee"


def _in_3d(values: tuple[int, ...], first: int) -> tuple[int, ...]:
    return (first, *values)[-3:]


def _flat(tensor: Tensor) -> Tensor:
    """(B, channels, voxels) with voxels side by side in memory."""
    flat = tensor.flatten(2)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Contiguous, the last axis extended by zeros to a length."""
    missing = length - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def _up_to(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _power_of_two(value: int) -> int:
    return int(2 ** math.ceil(math.log2(value)))
