"""The inner loops of a deformable convolution on the CPU, compiled by numba: gathering samples, scattering gradients.

They walk over output voxels, their taps, and the grid points around each sampling position; the innermost loop runs
over channels, which lie side by side in memory. They release the interpreter's lock, so that threads of ours share the
work: numba's own threads are not safe after a fork, or not when several threads start them.

Throughout, for one sample of the batch and its output voxels ``first`` to ``last``:

- ``table`` (voxels in, C): the input, channels last.
- ``offset`` (offset groups * taps * displaced axes, voxels out), ``mask`` (offset groups * taps, voxels out) or (0, 0).
- ``taps`` (taps, 3): each tap's place relative to its voxel, padding taken off. ``size``, ``output_size``: (z, y, x).
- ``columns`` (voxels of the chunk, taps, C): the samples, or their gradient; voxel ``origin`` is its first row.

Channels are counted by unsigned numbers: for signed ones numba tests each index for being negative, which keeps the
loop from being vectorised and made it ten times slower.
"""

from __future__ import annotations

import numba
import numpy as np

# Sums may be reordered and multiply-adds contracted; NaN keeps its meaning, which numba's fastmath=True would drop.
_FAST = {"contract", "reassoc", "nsz"}
_compiled = numba.njit(nogil=True, cache=True, fastmath=_FAST)
_inlined = numba.njit(nogil=True, fastmath=_FAST, inline="always")


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


@_compiled
def gather(table, offset, mask, taps, size, output_size, offset_groups, origin, first, last, columns):  # type: ignore[no-untyped-def]
    """Fill `columns` with the interpolated, modulated samples of output voxels `first` to `last`."""
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    channels = table.shape[1] // offset_groups
    row_z, row_y = size[1] * size[2], size[2]
    for voxel in range(first, last):
        z = voxel // (output_size[1] * output_size[2])
        y = voxel // output_size[2] % output_size[1]
        x = voxel % output_size[2]
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
                r00, r01, r10, r11 = y0 * row_y + x0, y0 * row_y + x1, y1 * row_y + x0, y1 * row_y + x1
                sample = columns[voxel - origin, tap]
                if axes == 2:
                    plane, _, inside, _, _, _ = _on_grid(z + taps[tap, 0], size[0])
                    plane *= row_z
                    w00, w01, w10, w11 = inside * w00, inside * w01, inside * w10, inside * w11
                    a, b, c, d = table[plane + r00], table[plane + r01], table[plane + r10], table[plane + r11]
                    for i in range(np.uint64(begin), np.uint64(end)):
                        sample[i] = w00 * a[i] + w01 * b[i] + w10 * c[i] + w11 * d[i]
                else:
                    z0, z1, wz0, wz1, _, _ = _between(z + taps[tap, 0], offset[entry * axes, voxel], size[0])
                    z0 *= row_z
                    z1 *= row_z
                    a, b, c, d = table[z0 + r00], table[z0 + r01], table[z0 + r10], table[z0 + r11]
                    e, f, g, h = table[z1 + r00], table[z1 + r01], table[z1 + r10], table[z1 + r11]
                    for i in range(np.uint64(begin), np.uint64(end)):
                        low = w00 * a[i] + w01 * b[i] + w10 * c[i] + w11 * d[i]
                        high = w00 * e[i] + w01 * f[i] + w10 * g[i] + w11 * h[i]
                        sample[i] = wz0 * low + wz1 * high


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
    grad_offset,
    grad_mask,
):
    """Fill `columns` as `gather` does, and the gradients by offset and mask, from the gradient by the columns."""
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    channels = table.shape[1] // offset_groups
    row_z, row_y = size[1] * size[2], size[2]
    zero = np.float32(0)
    for voxel in range(first, last):
        z = voxel // (output_size[1] * output_size[2])
        y = voxel // output_size[2] % output_size[1]
        x = voxel % output_size[2]
        for group in range(offset_groups):
            begin, end = group * channels, (group + 1) * channels
            for tap in range(count):
                entry = group * count + tap
                y0, y1, wy0, wy1, sy0, sy1 = _between(y + taps[tap, 1], offset[(entry + 1) * axes - 2, voxel], size[1])
                x0, x1, wx0, wx1, sx0, sx1 = _between(x + taps[tap, 2], offset[(entry + 1) * axes - 1, voxel], size[2])
                modulation = mask[entry, voxel] if mask.shape[0] else np.float32(1)
                w00, w01, w10, w11 = wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1
                r00, r01, r10, r11 = y0 * row_y + x0, y0 * row_y + x1, y1 * row_y + x0, y1 * row_y + x1
                sample, grad = columns[voxel - origin, tap], grad_columns[voxel - origin, tap]
                if axes == 2:
                    z0, _, wz0, wz1, sz0, sz1 = _on_grid(z + taps[tap, 0], size[0])
                else:
                    z0, z1, wz0, wz1, sz0, sz1 = _between(z + taps[tap, 0], offset[entry * axes, voxel], size[0])
                z0 *= row_z
                a, b, c, d = table[z0 + r00], table[z0 + r01], table[z0 + r10], table[z0 + r11]
                # <grad, x> of every grid point, in the order (z, y, x).
                p000 = p001 = p010 = p011 = p100 = p101 = p110 = p111 = zero
                low = modulation * wz0
                if axes == 2:
                    for i in range(np.uint64(begin), np.uint64(end)):
                        sample[i] = low * (w00 * a[i] + w01 * b[i] + w10 * c[i] + w11 * d[i])
                        p000 += grad[i] * a[i]
                        p001 += grad[i] * b[i]
                        p010 += grad[i] * c[i]
                        p011 += grad[i] * d[i]
                else:
                    z1 *= row_z
                    e, f, g, h = table[z1 + r00], table[z1 + r01], table[z1 + r10], table[z1 + r11]
                    high = modulation * wz1
                    for i in range(np.uint64(begin), np.uint64(end)):
                        below = w00 * a[i] + w01 * b[i] + w10 * c[i] + w11 * d[i]
                        above = w00 * e[i] + w01 * f[i] + w10 * g[i] + w11 * h[i]
                        sample[i] = low * below + high * above
                        p000 += grad[i] * a[i]
                        p001 += grad[i] * b[i]
                        p010 += grad[i] * c[i]
                        p011 += grad[i] * d[i]
                        p100 += grad[i] * e[i]
                        p101 += grad[i] * f[i]
                        p110 += grad[i] * g[i]
                        p111 += grad[i] * h[i]
                p00, p01 = wz0 * p000 + wz1 * p100, wz0 * p001 + wz1 * p101
                p10, p11 = wz0 * p010 + wz1 * p110, wz0 * p011 + wz1 * p111
                by_y = sy0 * (wx0 * p00 + wx1 * p01) + sy1 * (wx0 * p10 + wx1 * p11)
                by_x = wy0 * (sx0 * p00 + sx1 * p01) + wy1 * (sx0 * p10 + sx1 * p11)
                grad_offset[(entry + 1) * axes - 2, voxel] = modulation * by_y
                grad_offset[(entry + 1) * axes - 1, voxel] = modulation * by_x
                if axes == 3:
                    below = w00 * p000 + w01 * p001 + w10 * p010 + w11 * p011
                    above = w00 * p100 + w01 * p101 + w10 * p110 + w11 * p111
                    grad_offset[entry * axes, voxel] = modulation * (sz0 * below + sz1 * above)
                if mask.shape[0]:
                    grad_mask[entry, voxel] = w00 * p00 + w01 * p01 + w10 * p10 + w11 * p11


@_compiled
def scatter(  # type: ignore[no-untyped-def]
    grad_table, offset, mask, taps, size, output_size, offset_groups, origin, first, last, begin, end, grad_columns
):
    """Add the gradient by the columns to that by the table, for channels `begin` to `end` alone.

    Threads share this work by channels, not by voxels: then no two of them ever add to one number, and the order of the
    additions, hence the result, does not depend on how many there are.
    """
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    channels = grad_table.shape[1] // offset_groups
    row_z, row_y = size[1] * size[2], size[2]
    for voxel in range(first, last):
        z = voxel // (output_size[1] * output_size[2])
        y = voxel // output_size[2] % output_size[1]
        x = voxel % output_size[2]
        for group in range(begin // channels, (end - 1) // channels + 1):
            start, stop = max(begin, group * channels), min(end, (group + 1) * channels)
            for tap in range(count):
                entry = group * count + tap
                y0, y1, wy0, wy1, _, _ = _between(y + taps[tap, 1], offset[(entry + 1) * axes - 2, voxel], size[1])
                x0, x1, wx0, wx1, _, _ = _between(x + taps[tap, 2], offset[(entry + 1) * axes - 1, voxel], size[2])
                if mask.shape[0]:
                    wx0 *= mask[entry, voxel]
                    wx1 *= mask[entry, voxel]
                if axes == 2:
                    z0, z1, wz0, wz1, _, _ = _on_grid(z + taps[tap, 0], size[0])
                else:
                    z0, z1, wz0, wz1, _, _ = _between(z + taps[tap, 0], offset[entry * axes, voxel], size[0])
                grad = grad_columns[voxel - origin, tap]
                for corner in range(4 if axes == 2 else 8):
                    # Weights of 0 are left out: next to the border two grid points may be one and the same.
                    weight = (wy1 if corner & 2 else wy0) * (wx1 if corner & 1 else wx0) * (wz1 if corner & 4 else wz0)
                    row = (z1 if corner & 4 else z0) * row_z + (y1 if corner & 2 else y0) * row_y
                    target = grad_table[row + (x1 if corner & 1 else x0)]
                    if weight != 0:
                        for i in range(np.uint64(start), np.uint64(stop)):
                            target[i] += weight * grad[i]
