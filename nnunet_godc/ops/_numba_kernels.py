"""The loops of a deformable convolution on the CPU, compiled by numba: gathering, multiplying, scattering.

They walk over tiles of output voxels; in a tile over the taps, whose sampling positions are found for all its voxels at
once; then voxel by voxel over the grid points around a position. The innermost loop runs over channels, which lie side
by side in memory. The products with the weight are made here, too, tile by tile while the samples are in the cache:
PyTorch's would run in threads of OpenMP, which spin for a while after each, on the cores that these loops need.

The loops release the interpreter's lock, so that threads of ours share the work: numba's own threads are not safe after
a fork, or not when several threads start them.

Throughout, for one sample of the batch and its output voxels ``first`` to ``last``:

- ``table``: the input, channels last, (voxels in * C,); C counts each offset group's channels as a multiple of LANES.
- ``offset`` (offset groups * taps * displaced axes, voxels out), ``mask`` (offset groups * taps, voxels out) or (0, 0).
- ``taps`` (taps, 3): each tap's place relative to its voxel, padding taken off. ``size``, ``output_size``, ``stride``:
  (z, y, x).
- ``spans`` (groups of the convolution, 4): first channel of C and their number, first output and their number.
- "columns" (taps * voxels * C,) for one tile after the other: the samples, or their gradient.
- "nodes" (offset groups * taps * 4 or 8 * TILE,) for one tile after the other: the grid points around the sampling
  positions, as rows of the table and with their shares in the sample.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from nnunet_godc.kernels.numba import LANES, TILE
from nnunet_godc.ops._numba_vectors import FAST, add, load, multiply, multiply_block, scale, store, totals, zeros

DEPTH = 64  # of the inner dimension of a product at a time: what is read of B then stays in the first cache

_compiled = numba.njit(nogil=True, cache=True, fastmath=set(FAST))
_inlined = numba.njit(nogil=True, fastmath=set(FAST), inline="always")

# What is known along an axis, as rows of an array of floats and of integers.
_SHARES = 4  # of the grid points below and above a position in the sample, and their derivatives by the position
_MODULATION = 3 * _SHARES
_FLOATS = _MODULATION + 1
_PLACES = 6  # of the grid points below and above, per axis
_INTEGERS = _PLACES + 3  # and the voxel's own place


def _strip(vectors: int) -> Any:
    """A function that adds to so many vectors of each row of C (m, n) the product of A (m, k) and B (k, n)."""
    six, four, two, one = (multiply_block(rows, vectors) for rows in (6, 4, 2, 1))

    @_inlined
    def add_strip(a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, m, k):  # type: ignore[no-untyped-def]
        i = 0
        while i < m:
            left, into, rows = a_at + i * a_row, c_at + i * c_row, m - i
            if rows >= 6 and rows != 8:  # eight are two fours
                six(a, left, a_row, a_step, b, b_at, b_row, c, into, c_row, k)
                i += 6
            elif rows >= 4:
                four(a, left, a_row, a_step, b, b_at, b_row, c, into, c_row, k)
                i += 4
            elif rows >= 2:
                two(a, left, a_row, a_step, b, b_at, b_row, c, into, c_row, k)
                i += 2
            else:
                one(a, left, a_row, a_step, b, b_at, b_row, c, into, c_row, k)
                i += 1

    return add_strip


_wide, _narrow = _strip(2), _strip(1)


@_compiled
def add_product(a, a_at, a_row, a_step, b, b_at, b_row, c, c_at, c_row, m, k, n):  # type: ignore[no-untyped-def]
    """C (m, n) += A (m, k) B (k, n), n being a multiple of LANES; see `multiply_block` for how they lie."""
    for p in range(0, k, DEPTH):
        depth, left = min(DEPTH, k - p), a_at + p * a_step
        for j in range(0, n, 2 * LANES):
            right, into = b_at + p * b_row + j, c_at + j
            if n - j > LANES:
                _wide(a, left, a_row, a_step, b, right, b_row, c, into, c_row, m, depth)
            else:
                _narrow(a, left, a_row, a_step, b, right, b_row, c, into, c_row, m, depth)


@_inlined
def _locate(start, count, output_size, stride, integers):  # type: ignore[no-untyped-def]
    """The places (z, y, x) in the input of a tile's voxels."""
    for v in range(count):
        voxel = start + v
        integers[_PLACES * TILE + v] = voxel // (output_size[1] * output_size[2]) * stride[0]
        integers[(_PLACES + 1) * TILE + v] = voxel // output_size[2] % output_size[1] * stride[1]
        integers[(_PLACES + 2) * TILE + v] = voxel % output_size[2] * stride[2]


@_inlined
def _on_grid(axis, tap, extent, count, floats, integers):  # type: ignore[no-untyped-def]
    """Along an axis that is not displaced: one grid point, with share 0 outside the map."""
    for v in range(count):
        regular = integers[(_PLACES + axis) * TILE + v] + tap
        floats[_SHARES * axis * TILE + v] = np.float32(1) if 0 <= regular < extent else np.float32(0)
        integers[2 * axis * TILE + v] = min(max(regular, 0), extent - 1)


@_inlined
def _between(axis, tap, extent, displacement, floats, integers):  # type: ignore[no-untyped-def]
    """Along a displaced axis: the grid points below and above, their shares, and the derivatives of these.

    A position more than a voxel outside reads 0, so clamping there changes nothing and keeps the index defined. A NaN
    stays a NaN in the shares.
    """
    low, high = np.float32(-2), np.float32(extent + 1)
    end = np.int32(extent)
    one, zero = np.float32(1), np.float32(0)
    place, share = 2 * axis * TILE, _SHARES * axis * TILE
    for v in range(displacement.shape[0]):
        position = np.float32(integers[(_PLACES + axis) * TILE + v] + tap) + displacement[v]
        position = low if position < low else position
        position = high if position > high else position
        floor = np.floor(position)
        index = np.int32(floor) if position == position else np.int32(-2)  # as if outside
        fraction = position - floor
        below = one if 0 <= index < end else zero
        above = one if -1 <= index < end - 1 else zero
        integers[place + v] = min(max(index, 0), end - 1)
        integers[place + TILE + v] = min(max(index + 1, 0), end - 1)
        floats[share + v] = (one - fraction) * below
        floats[share + TILE + v] = fraction * above
        floats[share + 2 * TILE + v] = -below
        floats[share + 3 * TILE + v] = above


@_inlined
def _surround(axes, taps, tap, entry, size, offset, mask, start, count, floats, integers):  # type: ignore[no-untyped-def]
    """What is known along each axis around the sampling positions of a tap."""
    # Slices, as numba tests whether the index ``start + v`` is negative, and then LLVM makes no vectors of the loop.
    stop = start + count
    if axes == 3:
        _between(0, taps[tap, 0], size[0], offset[3 * entry, start:stop], floats, integers)
    else:
        _on_grid(0, taps[tap, 0], size[0], count, floats, integers)
    _between(1, taps[tap, 1], size[1], offset[(entry + 1) * axes - 2, start:stop], floats, integers)
    _between(2, taps[tap, 2], size[2], offset[(entry + 1) * axes - 1, start:stop], floats, integers)
    if mask.shape[0]:
        floats[_MODULATION * TILE : _MODULATION * TILE + count] = mask[entry, start:stop]


@_inlined
def _list_nodes(points, size, count, floats, integers, nodes, shares):  # type: ignore[no-untyped-def]
    """Each grid point's row of the table, and its share in the modulated sample, from what is known along each axis."""
    height, width = np.int32(size[1]), np.int32(size[2])
    for corner in range(points):
        z, y, x = (corner >> 2) * TILE, (corner >> 1 & 1) * TILE, (corner & 1) * TILE
        for v in range(count):
            line = integers[z + v] * height + integers[2 * TILE + y + v]
            nodes[corner * TILE + v] = line * width + integers[4 * TILE + x + v]
            share = floats[z + v] * floats[_SHARES * TILE + y + v] * floats[2 * _SHARES * TILE + x + v]
            shares[corner * TILE + v] = share * floats[_MODULATION * TILE + v]


@_inlined
def _four(shares, v, table, a, b, c, d, i):  # type: ignore[no-untyped-def]
    """The weighted sum of four grid points, for the channels from `i` on."""
    left = add(scale(shares[v], load(table, a + i)), scale(shares[v + TILE], load(table, b + i)))
    right = add(scale(shares[v + 2 * TILE], load(table, c + i)), scale(shares[v + 3 * TILE], load(table, d + i)))
    return add(left, right)


@_compiled
def forward(  # type: ignore[no-untyped-def]
    table, offset, mask, taps, size, output_size, stride, offset_groups, spans, weight, first, last, output
):
    """``output`` (outputs, voxels out) = W S for voxels `first` to `last`, S being the modulated samples.

    ``weight`` holds for each group of the convolution its taps' matrices (channels, outputs), the latter padded.
    """
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    points = 1 << axes
    row = table.shape[0] // (size[0] * size[1] * size[2])
    channels = row // offset_groups
    outputs = (output.shape[0] + LANES - 1) // LANES * LANES
    integers, floats = np.empty(_INTEGERS * TILE, np.int32), np.ones(_FLOATS * TILE, np.float32)
    nodes, shares = np.empty(points * TILE, np.int32), np.empty(points * TILE, np.float32)
    columns, products = np.empty(TILE * count * row, np.float32), np.empty(TILE * outputs, np.float32)
    for start in range(first, last, TILE):
        voxels = min(TILE, last - start)
        _locate(start, voxels, output_size, stride, integers)
        for entry in range(offset_groups * count):
            group, tap = entry // count, entry % count
            _surround(axes, taps, tap, entry, size, offset, mask, start, voxels, floats, integers)
            _list_nodes(points, size, voxels, floats, integers, nodes, shares)
            for v in range(voxels):
                sample, begin = (tap * voxels + v) * row + group * channels, group * channels
                a, b = np.int64(nodes[v]) * row + begin, np.int64(nodes[TILE + v]) * row + begin
                c, d = np.int64(nodes[2 * TILE + v]) * row + begin, np.int64(nodes[3 * TILE + v]) * row + begin
                if axes == 2:
                    for i in range(0, channels, LANES):
                        store(columns, sample + i, _four(shares, v, table, a, b, c, d, i))
                else:
                    e, f = np.int64(nodes[4 * TILE + v]) * row + begin, np.int64(nodes[5 * TILE + v]) * row + begin
                    g, h = np.int64(nodes[6 * TILE + v]) * row + begin, np.int64(nodes[7 * TILE + v]) * row + begin
                    for i in range(0, channels, LANES):
                        low = _four(shares, v, table, a, b, c, d, i)
                        high = _four(shares, v + 4 * TILE, table, e, f, g, h, i)
                        store(columns, sample + i, add(low, high))
        at = 0
        for span in range(spans.shape[0]):
            begin, length, into, made = spans[span]
            padded = (made + LANES - 1) // LANES * LANES
            products[:] = 0
            for tap in range(count):
                left = tap * voxels * row + begin
                add_product(columns, left, row, 1, weight, at, padded, products, 0, padded, voxels, length, padded)
                at += length * padded
            for o in range(made):
                for v in range(voxels):
                    output[into + o, start + v] = products[v * padded + o]


@_compiled
def differentiate(  # type: ignore[no-untyped-def]
    table,
    offset,
    mask,
    taps,
    size,
    output_size,
    stride,
    offset_groups,
    spans,
    weight,
    grad_output,
    origin,
    first,
    last,
    grad_columns,
    rows,
    weights,
    grad_offset,
    grad_mask,
    grad_weight,
):
    """Fill the gradients by the samples, the offset and the mask, and the nodes; add to the gradient by the weight.

    ``weight`` and ``grad_weight`` hold for each group of the convolution (outputs, taps, channels). The columns and the
    nodes begin with the voxel ``origin``, which begins a tile.
    """
    count = taps.shape[0]
    axes = offset.shape[0] // (offset_groups * count)
    points = 1 << axes
    row = table.shape[0] // (size[0] * size[1] * size[2])
    channels = row // offset_groups
    entries = offset_groups * count
    outputs = grad_output.shape[0]
    integers, floats = np.empty(_INTEGERS * TILE, np.int32), np.ones(_FLOATS * TILE, np.float32)
    dots = np.empty(TILE * LANES, np.float32)
    columns, grads = np.empty(TILE * count * row, np.float32), np.empty(TILE * outputs, np.float32)
    for start in range(first, last, TILE):
        voxels = min(TILE, last - start)
        beginning = (start - origin) * count * row
        for o in range(outputs):
            for v in range(voxels):
                grads[v * outputs + o] = grad_output[o, start + v]
        grad_columns[beginning : beginning + voxels * count * row] = 0
        at = 0
        for span in range(spans.shape[0]):
            begin, length, out, made = spans[span]
            for tap in range(count):
                right, into = at + tap * length, beginning + tap * voxels * row + begin
                add_product(
                    *(grads, out, outputs, 1, weight, right, count * length),
                    *(grad_columns, into, row, voxels, made, length),
                )
            at += made * count * length

        _locate(start, voxels, output_size, stride, integers)
        for entry in range(entries):
            group, tap = entry // count, entry % count
            _surround(axes, taps, tap, entry, size, offset, mask, start, voxels, floats, integers)
            node = ((start - origin) * entries + entry * TILE) * points
            nodes, shares = rows[node : node + points * TILE], weights[node : node + points * TILE]
            _list_nodes(points, size, voxels, floats, integers, nodes, shares)
            for v in range(voxels):
                sample, begin = (tap * voxels + v) * row + group * channels, group * channels
                a, b = np.int64(nodes[v]) * row + begin, np.int64(nodes[TILE + v]) * row + begin
                c, d = np.int64(nodes[2 * TILE + v]) * row + begin, np.int64(nodes[3 * TILE + v]) * row + begin
                e = f = g = h = a
                if axes == 3:
                    e, f = np.int64(nodes[4 * TILE + v]) * row + begin, np.int64(nodes[5 * TILE + v]) * row + begin
                    g, h = np.int64(nodes[6 * TILE + v]) * row + begin, np.int64(nodes[7 * TILE + v]) * row + begin
                dot_a = dot_b = dot_c = dot_d = dot_e = dot_f = dot_g = dot_h = zeros()
                for i in range(0, channels, LANES):
                    grad = load(grad_columns, beginning + sample + i)
                    value = _four(shares, v, table, a, b, c, d, i)
                    dot_a = add(dot_a, multiply(grad, load(table, a + i)))
                    dot_b = add(dot_b, multiply(grad, load(table, b + i)))
                    dot_c = add(dot_c, multiply(grad, load(table, c + i)))
                    dot_d = add(dot_d, multiply(grad, load(table, d + i)))
                    if axes == 3:
                        value = add(value, _four(shares, v + 4 * TILE, table, e, f, g, h, i))
                        dot_e = add(dot_e, multiply(grad, load(table, e + i)))
                        dot_f = add(dot_f, multiply(grad, load(table, f + i)))
                        dot_g = add(dot_g, multiply(grad, load(table, g + i)))
                        dot_h = add(dot_h, multiply(grad, load(table, h + i)))
                    store(columns, sample + i, value)
                store(dots, v * LANES, totals(dot_a, dot_b, dot_c, dot_d, dot_e, dot_f, dot_g, dot_h))
            _add_up(axes, entry, start, voxels, floats, dots, grad_offset, grad_mask)

        at = 0
        for span in range(spans.shape[0]):
            begin, length, out, made = spans[span]
            for tap in range(count):
                right, into = tap * voxels * row + begin, at + tap * length
                add_product(
                    *(grads, out, 1, outputs, columns, right, row),
                    *(grad_weight, into, count * length, made, voxels, length),
                )
            at += made * count * length


@_inlined
def _add_up(axes, entry, start, count, floats, dots, grad_offset, grad_mask):  # type: ignore[no-untyped-def]
    """The gradients by offset and mask from `dots`, <gradient, table> at every voxel's grid points."""
    stop = start + count
    by_z = grad_offset[entry * axes, start:stop]  # the same as by_y where z is not displaced
    by_y, by_x = grad_offset[(entry + 1) * axes - 2, start:stop], grad_offset[(entry + 1) * axes - 1, start:stop]
    for v in range(count):
        z, y, x, dot = v, _SHARES * TILE + v, 2 * _SHARES * TILE + v, v * LANES
        modulation = floats[_MODULATION * TILE + v]
        x0, x1, dx0, dx1 = floats[x], floats[x + TILE], floats[x + 2 * TILE], floats[x + 3 * TILE]
        y0, y1, dy0, dy1 = floats[y], floats[y + TILE], floats[y + 2 * TILE], floats[y + 3 * TILE]
        z0 = floats[z]
        d00, d01, d10, d11 = dots[dot], dots[dot + 1], dots[dot + 2], dots[dot + 3]
        p00, p01, p10, p11 = z0 * d00, z0 * d01, z0 * d10, z0 * d11
        if axes == 3:
            e00, e01, e10, e11 = dots[dot + 4], dots[dot + 5], dots[dot + 6], dots[dot + 7]
            z1, dz0, dz1 = floats[z + TILE], floats[z + 2 * TILE], floats[z + 3 * TILE]
            below = y0 * (x0 * d00 + x1 * d01) + y1 * (x0 * d10 + x1 * d11)
            above = y0 * (x0 * e00 + x1 * e01) + y1 * (x0 * e10 + x1 * e11)
            by_z[v] = modulation * (dz0 * below + dz1 * above)
            p00, p01, p10, p11 = p00 + z1 * e00, p01 + z1 * e01, p10 + z1 * e10, p11 + z1 * e11
        low, high = x0 * p00 + x1 * p01, x0 * p10 + x1 * p11
        by_y[v] = modulation * (dy0 * low + dy1 * high)
        by_x[v] = modulation * (y0 * (dx0 * p00 + dx1 * p01) + y1 * (dx0 * p10 + dx1 * p11))
        if grad_mask.shape[0]:
            grad_mask[entry, start + v] = y0 * low + y1 * high


@_compiled
def scatter(rows, weights, grad_columns, grad_table, points, offset_groups, count, voxels, channels, begin, end):  # type: ignore[no-untyped-def]
    """Add the gradient by the columns to that by the table, for channels `begin` to `end` of `channels` alone.

    Threads share this work by channels, not by voxels: then no two of them ever add to one number, and the order of the
    additions, hence the result, does not depend on how many there are. `count` is the number of taps.
    """
    per_group = channels // offset_groups
    entries = offset_groups * count
    for start in range(0, voxels, TILE):
        tile = min(TILE, voxels - start)
        for group in range(begin // per_group, (end - 1) // per_group + 1):
            low, high = max(begin, group * per_group), min(end, (group + 1) * per_group)
            for tap in range(count):
                node = (start * entries + (group * count + tap) * TILE) * points
                for v in range(tile):
                    source = (start * count + tap * tile + v) * channels
                    for corner in range(node + v, node + v + points * TILE, TILE):
                        weight = weights[corner]
                        # Shares of 0 are left out: next to the border two grid points may be one and the same.
                        if weight != 0:
                            target = np.int64(rows[corner]) * channels
                            for i in range(low, high, LANES):
                                addition = scale(weight, load(grad_columns, source + i))
                                store(grad_table, target + i, add(load(grad_table, target + i), addition))
