"""Where the taps of a deformable convolution read, inside a Triton kernel: voxels of a tile and the grid points around.

Along each axis a position lies in an interval of two neighbouring grid points, `low` and `low + 1`, that both exist:
an interval is moved into the map, and the weights, which follow from the distance to each point, are zero where the
position is a voxel or more away. So no load needs a mask, the points around a position are one address and constant
steps from it, and neighbours along x are neighbours in memory.

"""

# ruff: noqa: N803  constants of the compiler are in capitals, as in Triton's own examples
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_at(index, tiles, size, TILE: tl.constexpr):
    """Sample of the batch and lowest coordinates (z, y, x) of a tile; tiles are counted x first, over all samples."""
    tiles_y = tl.cdiv(size[1], TILE[1])
    tiles_x = tl.cdiv(size[2], TILE[2])
    tile = index % tiles
    z = tile // (tiles_x * tiles_y) * TILE[0]
    y = tile // tiles_x % tiles_y * TILE[1]
    return index // tiles, z, y, tile % tiles_x * TILE[2]


@triton.jit
def voxels_of(z, y, x, size, TILE: tl.constexpr):
    """Coordinates of the voxels of the tile there, TILE = (z, y, x) of them, their flat index, and which of them exist.

    Tiles are blocks, not runs: their samples overlap more, and the first-level cache serves the overlap.
    """
    index = tl.arange(0, TILE[0] * TILE[1] * TILE[2])
    z += index // (TILE[1] * TILE[2])
    y += index // TILE[2] % TILE[1]
    x += index % TILE[2]
    return (z, y, x), (z * size[1] + y) * size[2] + x, (z < size[0]) & (y < size[1]) & (x < size[2])


@triton.jit
def shifts_of(offset, channel_stride, entry, voxel, exists, AXES: tl.constexpr):
    """Offsets (z, y, x) of one tap for the voxels of a tile, in voxels; along z 0 where only y and x are displaced.

    They are loaded before the tap ahead of theirs is computed: all that a tap does waits for them.

    Args:
        offset: of the sample, (entries * AXES, voxels out).
        entry: tap, counted over offset groups.
        voxel, exists: as `voxels_of` returns them.
    """
    shifts = offset + tl.cast(entry * AXES, tl.int64) * channel_stride + voxel
    shift_y = tl.load(shifts + (AXES - 2) * channel_stride, exists, 0.0)
    shift_x = tl.load(shifts + (AXES - 1) * channel_stride, exists, 0.0)
    shift_z = tl.load(shifts, exists, 0.0) if AXES == 3 else tl.zeros_like(shift_y)
    return shift_z, shift_y, shift_x


@triton.jit
def sampling_points(
    shift_z,
    shift_y,
    shift_x,
    entry,
    place,
    size,
    stride,
    padding,
    step,
    KERNEL: tl.constexpr,
    AXES: tl.constexpr,
):
    """The points around the positions of one tap, for the voxels of a tile.

    Args:
        shift_z, shift_y, shift_x: as `shifts_of` returns them for this entry.
        entry: tap, counted over offset groups.
        place: as `voxels_of` returns it.
        size: of the input; stride, padding, step: of the convolution, step being its dilation.

    Returns:
        The row of the point that is lowest on every axis; then per axis the weights of the lower and the upper points
        and their derivatives by the position.
    """
    tap = entry % (KERNEL[0] * KERNEL[1] * KERNEL[2])
    regular_z = place[0] * stride[0] + tap // (KERNEL[1] * KERNEL[2]) * step[0] - padding[0]
    regular_y = place[1] * stride[1] + tap // KERNEL[2] % KERNEL[1] * step[1] - padding[1]
    regular_x = place[2] * stride[2] + tap % KERNEL[2] * step[2] - padding[2]
    low_y, along_y = _between(regular_y, shift_y, size[1])
    low_x, along_x = _between(regular_x, shift_x, size[2])
    if AXES == 3:
        low_z, along_z = _between(regular_z, shift_z, size[0])
    else:
        low_z = tl.minimum(tl.maximum(regular_z, 0), size[0] - 1)
        inside = (low_z == regular_z).to(tl.float32)
        along_z = (inside, inside, inside, inside)  # of which the first alone is read
    return (low_z * size[1] + low_y) * size[2] + low_x, along_z, along_y, along_x


@triton.jit
def _between(regular, shift, size):
    """Along a displaced axis: `low`, and the weights of low and low + 1 with their derivatives.

    A position more than a voxel outside reads zero, so clamping it there changes no value and keeps the conversion to
    an integer defined. A NaN stays a NaN in the weights.
    """
    position = regular.to(tl.float32) + shift.to(tl.float32)
    position = tl.maximum(position, -2.0, propagate_nan=tl.PropagateNan.ALL)
    position = tl.minimum(position, size + 1.0, propagate_nan=tl.PropagateNan.ALL)
    low = tl.minimum(tl.maximum(tl.floor(position).to(tl.int32), 0), tl.maximum(size - 2, 0))
    lower = position - low.to(tl.float32)
    # low + 1 lies outside a map of a single voxel: as far away as makes its weight zero wherever the position is
    upper = lower - tl.where(size > 1, 1.0, 4.0)
    return low, (_weight(lower), _weight(upper), _slope(lower), _slope(upper))


@triton.jit
def _weight(distance):
    return tl.maximum(1 - tl.abs(distance), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _slope(distance):
    """Derivative of the weight by the position; on a grid point the one towards larger positions."""
    return tl.where((distance >= -1) & (distance < 1), tl.where(distance < 0, 1.0, -1.0), 0.0)
