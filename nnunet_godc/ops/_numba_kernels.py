"""The inner loops of a deformable convolution on the CPU, compiled by numba: gathering samples, scattering gradients.

They walk over output voxels, their taps, and the grid points around each sampling position; the innermost loop runs
over channels, which lie side by side in memory. They release the interpreter's lock, so that threads of ours share the
work: numba's own threads are not safe after a fork, or not when several threads start them.

Throughout, for one sample of the batch and its output voxels ``first`` to ``last``:

- ``table``: the input, channels last, (voxels in * C,); C counts each offset group's channels as a multiple of LANES.
- ``offset`` (offset groups * taps * displaced axes, voxels out), ``mask`` (offset groups * taps, voxels out) or (0, 0).
- ``taps`` (taps, 3): each tap's place relative to its voxel, padding taken off. ``size``, ``output_size``: (z, y, x).
- ``columns`` (voxels of the chunk * taps * C,): the samples, or their gradient; voxel ``origin`` is its first.
- ``rows``, ``weights`` (voxels of the chunk * taps * offset groups * 4 or 8,): each sampling position's grid points, as
  rows of the table, and their shares in the sample.
"""

from __future__ import annotations

import numba
import numpy as np

from nnunet_godc.compiled_loops import LANES
from nnunet_godc.ops._numba_vectors import FAST, add, load, multiply, scale, store, total, zeros

_compiled = numba.njit(nogil=True, cache=True, fastmath=set(FAST))
_inlined = numba.njit(nogil=True, fastmath=set(FAST), inline="always")


@_inlined
def _on_grid(regular, extent):  # type: ignore[no-untyped-def]
    """Along an axis that is not displaced: one grid point, with weight 0 outside the map."""
    inside = np.float32(1) if 0 <= regular < extent else np.float32(0)
    index = min(max(regular, 0), extent - 1)
    return index, index, inside, np.float32(0), np.float32(0), np.float32(0)


@_inlined
def _between(regular, shift, extent):  # type: ignore[no-untyped-def]
    """Along a displaced axis: the grid points below and above, their weights, and the weights' derivatives.

    A position more than a voxel outside reads 0, so clamping there changes nothing and keeps the index defined. A NaN
    stays a NaN in the weights.
    """
    position = np.float32(regular) + shift
    if position < np.float32(-2):
        position = np.float32(-2)
    if position > np.float32(extent + 1):
        position = np.float32(extent + 1)
    floor = np.floor(position)
    index = np.int64(floor) if position == position else np.int64(0)
    fraction = position - floor
    low = np.float32(1) if 0 <= index < extent else np.float32(0)
    high = np.float32(1) if -1 <= index < extent - 1 else np.float32(0)
    return (
        min(max(index, 0), extent - 1),
        min(max(index + 1, 0), extent - 1),
        (np.float32(1) - fraction) * low,
        fraction * high,
        -low,
        high,
    )


@_inlined
def _unravel(voxel, size):  # type: ignore[no-untyped-def]
    return voxel // (size[1] * size[2]), voxel // size[2] % size[1], voxel % size[2]


@_inlined
def _weighted(w00, a, w01, b, w10, c, w11, d):  # type: ignore[no-untyped-def]
    return add(add(scale(w00, a), scale(w01, b)), add(scale(w10, c), scale(w11, d)))


@_inlined
def _sum_of(table, w00, a, w01, b, w10, c, w11, d):  # type: ignore[no-untyped-def]
    return _weighted(w00, load(table, a), w01, load(table, b), w10, load(table, c), w11, load(table, d))


@_compiled
def gather(table, offset, mask, taps, size, output_size, offset_groups, origin, first, last, columns):  # type: ignore[no-untyped-def]
    """Fill `columns` with the interpolated, modulated samples of output voxels `first` to `last`."""
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    row_x = table.shape[0] // (size[0] * size[1] * size[2])
    row_y, row_z = row_x * size[2], row_x * size[2] * size[1]
    channels = row_x // offset_groups
    for voxel in range(first, last):
        z, y, x = _unravel(voxel, output_size)
        for group in range(offset_groups):
            begin, end = group * channels, (group + 1) * channels
            for tap in range(count):
                entry = group * count + tap
                y0, y1, wy0, wy1, _, _ = _between(y + taps[tap, 1], offset[(entry + 1) * axes - 2, voxel], size[1])
                x0, x1, wx0, wx1, _, _ = _between(x + taps[tap, 2], offset[(entry + 1) * axes - 1, voxel], size[2])
                if mask.shape[0]:
                    wx0 *= mask[entry, voxel]
                    wx1 *= mask[entry, voxel]
                w00, w01, w10, w11 = wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1
                y0, y1, x0, x1 = y0 * row_y, y1 * row_y, x0 * row_x, x1 * row_x
                sample = ((voxel - origin) * count + tap) * row_x
                if axes == 2:
                    plane, _, inside, _, _, _ = _on_grid(z + taps[tap, 0], size[0])
                    plane *= row_z
                    w00, w01, w10, w11 = inside * w00, inside * w01, inside * w10, inside * w11
                    a, b, c, d = plane + y0 + x0, plane + y0 + x1, plane + y1 + x0, plane + y1 + x1
                    for i in range(begin, end, LANES):
                        value = _sum_of(table, w00, a + i, w01, b + i, w10, c + i, w11, d + i)
                        store(columns, sample + i, value)
                else:
                    z0, z1, wz0, wz1, _, _ = _between(z + taps[tap, 0], offset[entry * axes, voxel], size[0])
                    z0, z1 = z0 * row_z, z1 * row_z
                    a, b, c, d = z0 + y0 + x0, z0 + y0 + x1, z0 + y1 + x0, z0 + y1 + x1
                    e, f, g, h = z1 + y0 + x0, z1 + y0 + x1, z1 + y1 + x0, z1 + y1 + x1
                    for i in range(begin, end, LANES):
                        low = _sum_of(table, w00, a + i, w01, b + i, w10, c + i, w11, d + i)
                        high = _sum_of(table, w00, e + i, w01, f + i, w10, g + i, w11, h + i)
                        store(columns, sample + i, add(scale(wz0, low), scale(wz1, high)))


@_compiled
def differentiate(  # type: ignore[no-untyped-def]
    table,
    offset,
    mask,
    taps,
    size,
    output_size,
    offset_groups,
    origin,
    first,
    last,
    grad_columns,
    columns,
    rows,
    weights,
    grad_offset,
    grad_mask,
):
    """Fill `columns` as `gather` does, `rows` and `weights`, and the gradients by offset and mask."""
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    points = 1 << axes
    row_x = table.shape[0] // (size[0] * size[1] * size[2])
    row_y, row_z = row_x * size[2], row_x * size[2] * size[1]
    channels = row_x // offset_groups
    for voxel in range(first, last):
        z, y, x = _unravel(voxel, output_size)
        for group in range(offset_groups):
            begin, end = group * channels, (group + 1) * channels
            for tap in range(count):
                entry = group * count + tap
                y0, y1, wy0, wy1, sy0, sy1 = _between(y + taps[tap, 1], offset[(entry + 1) * axes - 2, voxel], size[1])
                x0, x1, wx0, wx1, sx0, sx1 = _between(x + taps[tap, 2], offset[(entry + 1) * axes - 1, voxel], size[2])
                if axes == 2:
                    z0, z1, wz0, wz1, sz0, sz1 = _on_grid(z + taps[tap, 0], size[0])
                else:
                    z0, z1, wz0, wz1, sz0, sz1 = _between(z + taps[tap, 0], offset[entry * axes, voxel], size[0])
                modulation = mask[entry, voxel] if mask.shape[0] else np.float32(1)
                w00, w01, w10, w11 = wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1
                low, high = modulation * wz0, modulation * wz1

                place = (voxel - origin) * count + tap
                point = (place * offset_groups + group) * points
                plane, line0, line1 = z0 * size[1] * size[2], y0 * size[2], y1 * size[2]
                rows[point], rows[point + 1] = plane + line0 + x0, plane + line0 + x1
                rows[point + 2], rows[point + 3] = plane + line1 + x0, plane + line1 + x1
                weights[point], weights[point + 1] = low * w00, low * w01
                weights[point + 2], weights[point + 3] = low * w10, low * w11
                if axes == 3:
                    plane = z1 * size[1] * size[2]
                    rows[point + 4], rows[point + 5] = plane + line0 + x0, plane + line0 + x1
                    rows[point + 6], rows[point + 7] = plane + line1 + x0, plane + line1 + x1
                    weights[point + 4], weights[point + 5] = high * w00, high * w01
                    weights[point + 6], weights[point + 7] = high * w10, high * w11

                y0, y1, x0, x1, z0, z1 = y0 * row_y, y1 * row_y, x0 * row_x, x1 * row_x, z0 * row_z, z1 * row_z
                a, b, c, d = z0 + y0 + x0, z0 + y0 + x1, z0 + y1 + x0, z0 + y1 + x1
                e, f, g, h = z1 + y0 + x0, z1 + y0 + x1, z1 + y1 + x0, z1 + y1 + x1
                sample = place * row_x
                # grad * x at every grid point, in the order (z, y, x), to be summed over the lanes
                p000 = p001 = p010 = p011 = p100 = p101 = p110 = p111 = zeros()
                for i in range(begin, end, LANES):
                    grad = load(grad_columns, sample + i)
                    v00, v01, v10, v11 = load(table, a + i), load(table, b + i), load(table, c + i), load(table, d + i)
                    value = scale(low, _weighted(w00, v00, w01, v01, w10, v10, w11, v11))
                    p000, p001 = add(p000, multiply(grad, v00)), add(p001, multiply(grad, v01))
                    p010, p011 = add(p010, multiply(grad, v10)), add(p011, multiply(grad, v11))
                    if axes == 3:
                        v00, v01 = load(table, e + i), load(table, f + i)
                        v10, v11 = load(table, g + i), load(table, h + i)
                        value = add(value, scale(high, _weighted(w00, v00, w01, v01, w10, v10, w11, v11)))
                        p100, p101 = add(p100, multiply(grad, v00)), add(p101, multiply(grad, v01))
                        p110, p111 = add(p110, multiply(grad, v10)), add(p111, multiply(grad, v11))
                    store(columns, sample + i, value)

                p00, p01 = add(scale(wz0, p000), scale(wz1, p100)), add(scale(wz0, p001), scale(wz1, p101))
                p10, p11 = add(scale(wz0, p010), scale(wz1, p110)), add(scale(wz0, p011), scale(wz1, p111))
                by_y = _weighted(sy0 * wx0, p00, sy0 * wx1, p01, sy1 * wx0, p10, sy1 * wx1, p11)
                by_x = _weighted(wy0 * sx0, p00, wy0 * sx1, p01, wy1 * sx0, p10, wy1 * sx1, p11)
                grad_offset[(entry + 1) * axes - 2, voxel] = modulation * total(by_y)
                grad_offset[(entry + 1) * axes - 1, voxel] = modulation * total(by_x)
                if axes == 3:
                    below = _weighted(w00, p000, w01, p001, w10, p010, w11, p011)
                    above = _weighted(w00, p100, w01, p101, w10, p110, w11, p111)
                    grad_offset[entry * axes, voxel] = modulation * total(add(scale(sz0, below), scale(sz1, above)))
                if mask.shape[0]:
                    grad_mask[entry, voxel] = total(_weighted(w00, p00, w01, p01, w10, p10, w11, p11))


@_compiled
def scatter(rows, weights, grad_columns, grad_table, points, offset_groups, places, channels, begin, end):  # type: ignore[no-untyped-def]
    """Add the gradient by the columns to that by the table, for channels `begin` to `end` of `channels` alone.

    Threads share this work by channels, not by voxels: then no two of them ever add to one number, and the order of the
    additions, hence the result, does not depend on how many there are. `places` counts the chunk's voxels times taps.
    """
    per_group = channels // offset_groups
    for group in range(begin // per_group, (end - 1) // per_group + 1):
        start, stop = max(begin, group * per_group), min(end, (group + 1) * per_group)
        for place in range(places):
            point = (place * offset_groups + group) * points
            for corner in range(point, point + points):
                weight = weights[corner]
                # Weights of 0 are left out: next to the border two grid points may be one and the same.
                if weight != 0:
                    target, source = np.int64(rows[corner]) * channels, place * channels
                    for i in range(start, stop, LANES):
                        addition = scale(weight, load(grad_columns, source + i))
                        store(grad_table, target + i, add(load(grad_table, target + i), addition))
