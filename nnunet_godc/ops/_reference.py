"""Deformable convolution in plain PyTorch: the definition that every faster backend is tested against.

The output is made tile by tile, all taps of a tile at once, so that the samples of all taps ("columns") never exist
for the whole map: what a tile needs is bounded by a share of the tensors of the call. A sample by linear
interpolation is a weighted sum of 2, 4 or 8 rows of the channels-last input, which `embedding_bag` does in one pass.
Tiles rather than single taps, because many small operations cost more than their arithmetic: a walk tap by tap made
five times as many and took five times as long on two busy cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from nnunet_godc.ops._geometry import Arguments, Geometry, Neighbours, channel_groups

# A tile's temporary memory: this share of input + offset + output, and for small maps this many bytes. More makes
# fewer, larger operations.
WORKSPACE = 0.5
SMALLEST_WORKSPACE = 64 * 2**20


def why_unusable() -> None:
    """It runs wherever PyTorch does."""


def supports(arguments: Arguments) -> bool:
    """Any call."""
    return True


def forward(arguments: Arguments, bias: Tensor | None) -> Tensor:
    """Deformable convolution; arguments and result as in :func:`nnunet_godc.ops.deform_conv`."""
    call = _Call(arguments)
    weight = arguments.weight
    output = call.table.new_empty(call.geometry.batch, weight.shape[0], call.geometry.voxels_out)  # (B, out, L)
    for tile in call.tiles():
        sampled = torch.cat([points.sample() for points in call.points(tile)], dim=-1)  # (B*l, taps, in)
        rows = torch.cat([sampled[:, :, group].flatten(1) @ kernel for group, _, kernel in call.weight_groups()], dim=1)
        output[:, :, tile] = rows.view(call.geometry.batch, -1, weight.shape[0]).transpose(1, 2)
    if bias is not None:
        output += bias[:, None]
    return output.view(*output.shape[:2], *call.geometry.output_size).to(arguments.input.dtype)


def backward(grad_output: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the sum of `grad_output * forward(...)` by input, offset, weight and mask.

    With S[k] the samples of tap k (one row per output voxel), forward is sum_k S[k] W[k]^T, hence dW[k] = G^T S[k] and
    dS[k] = G W[k], and S[k] = m sum_c w_c x[row_c] gives the rest: dx[row_c] += m w_c dS, d offset = m sum_c
    <dS, x[row_c]> dw_c/d position, dm = sum_c w_c <dS, x[row_c]>. The mask's gradient is empty without a mask.
    """
    call = _Call(arguments)
    input, offset, weight, mask, *_ = arguments
    geometry = call.geometry
    grad_output = grad_output.flatten(2)  # (B, out, L)
    grad_table = torch.zeros_like(call.table)  # (B*P, in)
    grad_offset = torch.zeros_like(call.offset)  # (B, offset groups, taps, displaced axes, L)
    grad_weight = torch.zeros_like(call.weight)  # (out, taps, in / groups)
    grad_mask = None if call.mask is None else torch.zeros_like(call.mask)  # (B, offset groups, taps, L)

    for tile in call.tiles():
        grad_rows = grad_output[:, :, tile].to(call.table.dtype).transpose(1, 2).reshape(-1, weight.shape[0])
        by_voxel = (geometry.batch, tile.stop - tile.start, geometry.taps)
        grad_sampled = torch.cat(
            [
                (grad_rows[:, outputs] @ kernel.t()).view(len(grad_rows), geometry.taps, -1)
                for _, outputs, kernel in call.weight_groups()
            ],
            dim=-1,
        )  # (B*l, taps, in)
        sampled = []
        for group, points in enumerate(call.points(tile)):
            sampled.append(points.sample())
            grad = grad_sampled[:, :, points.channels].flatten(0, 1)  # (M, in / offset groups)
            products, grad_values = points.scatter(grad, grad_table)
            if grad_mask is not None:
                grad_mask[:, group, :, tile] = grad_values.view(by_voxel).transpose(1, 2)
            for axis, slope in enumerate(points.neighbours.slopes):
                displacement = slope.mul_(products).sum(0).view(by_voxel)
                grad_offset[:, group, :, axis, tile] = displacement.transpose(1, 2)
        samples = torch.cat(sampled, dim=-1)
        for inputs, outputs, _ in call.weight_groups():
            by_group = grad_rows[:, outputs].t() @ samples[:, :, inputs].flatten(1)
            grad_weight[outputs] += by_group.view(len(by_group), geometry.taps, -1)

    grad_input = grad_table.view(geometry.batch, geometry.voxels_in, input.shape[1]).transpose(1, 2).contiguous()
    return (
        grad_input.view(input.shape).to(input.dtype),
        grad_offset.view(offset.shape).to(offset.dtype),
        grad_weight.transpose(1, 2).contiguous().view(weight.shape).to(weight.dtype),
        grad_output.new_empty(0) if grad_mask is None or mask is None else grad_mask.view(mask.shape).to(mask.dtype),
    )


class _Call:
    """The arguments of one call in the form in which tiles are cut from them: float32 (float64 stays)."""

    def __init__(self, arguments: Arguments) -> None:
        input, offset, weight, mask, _, _, offset_groups, _ = arguments
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.geometry = geometry = Geometry.of(arguments)
        self.table = input.to(dtype).flatten(2).transpose(1, 2).reshape(-1, input.shape[1]).contiguous()  # (B*P, in)
        self.weight = weight.to(dtype).flatten(2).transpose(1, 2).contiguous()  # (out, taps, in / groups)
        by_tap = (geometry.batch, offset_groups, geometry.taps)
        self.offset = offset.to(dtype).reshape(*by_tap, geometry.displaced_axes, geometry.voxels_out)
        self.mask = None if mask is None else mask.to(dtype).reshape(*by_tap, geometry.voxels_out)

    def tiles(self) -> Iterator[slice]:
        """Ranges of output voxels, as few as the workspace allows; none where there is nothing to compute."""
        geometry = self.geometry
        if geometry.batch == 0 or len(self.weight) == 0:
            return
        points = 2**geometry.displaced_axes
        columns = geometry.taps * (3 * self.table.shape[1] + (5 + geometry.displaced_axes) * points)
        whole = geometry.batch * geometry.voxels_out * columns
        tensors = self.table.numel() + self.offset.numel() + geometry.batch * geometry.voxels_out * len(self.weight)
        workspace = max(WORKSPACE * tensors, SMALLEST_WORKSPACE / self.table.element_size())
        size = max(1, int(geometry.voxels_out * min(1.0, workspace / whole)))
        for start in range(0, geometry.voxels_out, size):
            yield slice(start, min(start + size, geometry.voxels_out))

    def points(self, tile: slice) -> Iterator[_Points]:
        """The sampling points of each offset group in a tile of l voxels, M = B * l * taps of them."""
        channels = self.table.shape[1] // self.geometry.offset_groups
        for group in range(self.geometry.offset_groups):
            offset = self.offset[:, group, :, :, tile].permute(0, 3, 1, 2).contiguous()  # (B, l, taps, axes)
            mask = None if self.mask is None else self.mask[:, group, :, tile].transpose(1, 2).reshape(-1)  # (M,)
            own = slice(group * channels, (group + 1) * channels)
            yield _Points(self.table, self.geometry.neighbours(tile, offset), mask, own, self.geometry.taps)

    def weight_groups(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Input channels, output channels and kernel (taps * in, out) of each group of the convolution."""
        groups = self.table.shape[1] // self.weight.shape[2]
        for inputs, outputs in channel_groups(self.table.shape[1], len(self.weight), groups):
            yield inputs, outputs, self.weight[outputs].flatten(1).t()


class _Points:
    """The input under the sampling points of one tile and offset group: reading it, and adding to its gradient."""

    def __init__(
        self, table: Tensor, neighbours: Neighbours, modulation: Tensor | None, channels: slice, taps: int
    ) -> None:
        self.neighbours = neighbours
        self.channels = channels
        self.taps = taps
        self.table = table[:, channels].contiguous()
        self.modulation = modulation

    def sample(self) -> Tensor:
        """Interpolated and modulated values, (B * l, taps, channels)."""
        weights = self.neighbours.weights.t().contiguous()
        if self.modulation is not None:
            weights *= self.modulation[:, None]
        rows = self.neighbours.rows.t().contiguous()
        values = embedding_bag(rows, self.table, mode="sum", per_sample_weights=weights)
        return values.view(-1, self.taps, values.shape[1])

    def scatter(self, grad: Tensor, grad_table: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the gradient of the sampled values, (M, channels), to the gradient of the table.

        Returns:
            m <grad, value> for every grid point, (K, M), and d loss / d m for every position, (M,).
        """
        products = torch.empty_like(self.neighbours.weights)
        for rows, weights, product in zip(self.neighbours.rows, self.neighbours.weights, products, strict=True):
            values = self.table.index_select(0, rows).mul_(grad)
            torch.sum(values, dim=1, out=product)
            scale = weights if self.modulation is None else weights * self.modulation
            grad_table[:, self.channels].index_add_(0, rows, torch.mul(grad, scale[:, None], out=values))
        grad_modulation = (products * self.neighbours.weights).sum(0)
        if self.modulation is not None:
            products *= self.modulation
        return products, grad_modulation
