"""The three kernels of a deformable convolution on the GPU: forward, gradient by samples, gradient by weight.

Throughout:

- ``table`` (B, voxels in, groups * C): the input, channels last; C are an offset group's channels, padded to whole
  blocks, so that no load along channels needs a mask.
- ``offset`` (B, groups * taps * AXES, voxels out) and ``mask`` (B, groups * taps, voxels out) or None, with their
  strides over batch and channels. An "entry" is a tap of an offset group, counted as there.
- ``weight``: per entry a matrix (C, OUT) forward and (OUT, C) backward, OUT padded like C.
- ``grad_output``, ``output`` (B, OUTPUTS, voxels out).

The products are the tensor cores', on operands of the input's dtype; positions, interpolation and sums are float32.
"""

# ruff: noqa: N803, N806  constants of the compiler are in capitals, as in Triton's own examples
from __future__ import annotations

import triton
import triton.language as tl

from nnunet_godc.ops._triton_points import sampling_points, shifts_of, tile_at, voxels_of


@triton.jit
def forward(
    table,
    offset,
    offset_strides,
    mask,
    mask_strides,
    weight,
    bias,
    output,
    size,
    output_size,
    stride,
    padding,
    step,
    tiles,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    AXES: tl.constexpr,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = b + sum_k W_k S_k for a tile of voxels and a block of outputs, S_k being the samples of tap k."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    ROW: tl.constexpr = GROUPS * C
    sample, z, y, x = tile_at(tl.program_id(0), tiles, output_size, TILE)
    sample = tl.cast(sample, tl.int64)
    place, voxel, exists = voxels_of(z, y, x, output_size, TILE)
    outputs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    channels = tl.arange(0, BLOCK_C)
    table += sample * size[0] * size[1] * size[2] * ROW
    offset += sample * offset_strides[0]
    sums = tl.zeros((TILE[0] * TILE[1] * TILE[2], BLOCK_OUT), tl.float32)
    next_z, next_y, next_x = shifts_of(offset, offset_strides[1], 0, voxel, exists, AXES)
    for entry in range(GROUPS * TAPS):
        shift_z, shift_y, shift_x = next_z, next_y, next_x
        following = tl.minimum(entry + 1, GROUPS * TAPS - 1)
        next_z, next_y, next_x = shifts_of(offset, offset_strides[1], following, voxel, exists, AXES)
        row, along_z, along_y, along_x = sampling_points(
            shift_z, shift_y, shift_x, entry, place, size, stride, padding, step, KERNEL, AXES
        )
        scale = _modulation(mask, mask_strides, sample, entry, voxel, exists)
        rows = table + row.to(tl.int64) * ROW + entry // TAPS * C
        for c in range(0, C, BLOCK_C):
            samples = _interpolate(rows, size, along_z, along_y, along_x, scale, c + channels, ROW, AXES)
            kernel = tl.load(weight + ((entry * C + c + channels) * OUT)[:, None] + outputs[None, :])
            sums = tl.dot(samples.to(kernel.dtype), kernel, sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + outputs, outputs < OUTPUTS, 0.0).to(tl.float32)[None, :]
    places = _places(output, sample, outputs[None, :], voxel[:, None], output_size, OUTPUTS)
    tl.store(places, sums.to(output.dtype.element_ty), exists[:, None] & (outputs < OUTPUTS)[None, :])


@triton.jit
def gradient_by_samples(
    table,
    offset,
    offset_strides,
    mask,
    mask_strides,
    weight,
    grad_output,
    grad_table,
    grad_offset,
    grad_mask,
    fixed_point,
    size,
    output_size,
    stride,
    padding,
    step,
    tiles,
    entries,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    AXES: tl.constexpr,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From dS_k = W_k^T dy, for a tile of voxels and a range of entries: gradients by input, offset and mask.

    The input's is added up by atomic operations, in float32, whose order varies from run to run; or, with
    `fixed_point`, a factor on the device, in integers, whose sum is the same in any order. In `weight` the channels
    (4, BLOCK_C / 8, 2) of each block stand in the order (BLOCK_C / 8, 4, 2).
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    ROW: tl.constexpr = GROUPS * C
    VOXELS: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    LANES: tl.constexpr = BLOCK_C // 4
    sample, z, y, x = tile_at(tl.program_id(0), tiles, output_size, TILE)
    sample = tl.cast(sample, tl.int64)
    place, voxel, exists = voxels_of(z, y, x, output_size, TILE)
    voxels_out = output_size[0] * output_size[1] * output_size[2]
    outputs = tl.arange(0, BLOCK_OUT)
    channels = tl.arange(0, BLOCK_C)
    table += sample * size[0] * size[1] * size[2] * ROW
    grad_table += sample * size[0] * size[1] * size[2] * ROW
    offset += sample * offset_strides[0]
    if OUT == BLOCK_OUT:
        places = _places(grad_output, sample, outputs[None, :], voxel[:, None], output_size, OUTPUTS)
        grads = tl.load(places, exists[:, None] & (outputs < OUTPUTS)[None, :], 0.0)
    first = tl.program_id(1) * entries
    last = tl.minimum(first + entries, GROUPS * TAPS) - 1
    next_z, next_y, next_x = shifts_of(offset, offset_strides[1], first, voxel, exists, AXES)
    for entry in range(first, last + 1):
        shift_z, shift_y, shift_x = next_z, next_y, next_x
        following = tl.minimum(entry + 1, last)
        next_z, next_y, next_x = shifts_of(offset, offset_strides[1], following, voxel, exists, AXES)
        row, along_z, along_y, along_x = sampling_points(
            shift_z, shift_y, shift_x, entry, place, size, stride, padding, step, KERNEL, AXES
        )
        scale = _modulation(mask, mask_strides, sample, entry, voxel, exists)
        shared = row.to(tl.int64) * ROW + entry // TAPS * C
        by_z = tl.zeros((VOXELS, LANES), tl.float32)
        by_y = tl.zeros((VOXELS, LANES), tl.float32)
        by_x = tl.zeros((VOXELS, LANES), tl.float32)
        by_mask = tl.zeros((VOXELS, LANES), tl.float32)
        for c in range(0, C, BLOCK_C):
            grad_samples = tl.zeros((VOXELS, BLOCK_C), tl.float32)
            for o in range(0, OUT, BLOCK_OUT):
                if OUT != BLOCK_OUT:
                    places = _places(grad_output, sample, o + outputs[None, :], voxel[:, None], output_size, OUTPUTS)
                    grads = tl.load(places, exists[:, None] & (o + outputs < OUTPUTS)[None, :], 0.0)
                kernel = tl.load(weight + ((entry * OUT + o + outputs) * C)[:, None] + (c + channels)[None, :])
                grad_samples = tl.dot(grads, kernel, grad_samples, input_precision=PRECISION)
            # Triton would carry the layout of the tensor cores' product on to all that is computed with it, and move
            # each row that it loads into that layout; not through this, which puts the channels into their order.
            grad_samples = tl.permute(tl.reshape(grad_samples, (VOXELS, BLOCK_C // 8, 4, 2)), (0, 2, 1, 3))
            grad_samples = tl.reshape(grad_samples, (VOXELS, BLOCK_C))
            # 4 channels per thread, in what is read as in what is added: the widest atomic operation
            points = tl.max_contiguous((shared + c)[:, None] + channels[None, :], (1, 4))
            # All is read before anything is added: no load waits for an addition, whose address might be its own.
            for up in tl.static_range(AXES - 1):
                plane = tl.zeros((VOXELS, LANES), tl.float32)
                plane_by_y = tl.zeros((VOXELS, LANES), tl.float32)
                plane_by_x = tl.zeros((VOXELS, LANES), tl.float32)
                for back in tl.static_range(2):
                    values = table + points + _step(size, up, back, ROW)
                    lower = _sum_of_four(tl.load(values).to(tl.float32) * grad_samples)
                    upper = _sum_of_four(tl.load(values + ROW).to(tl.float32) * grad_samples)
                    line = lower * _per_lane(along_x[0], BLOCK_C) + upper * _per_lane(along_x[1], BLOCK_C)
                    line_by_x = lower * _per_lane(along_x[2], BLOCK_C) + upper * _per_lane(along_x[3], BLOCK_C)
                    plane += line * _per_lane(along_y[back], BLOCK_C)
                    plane_by_y += line * _per_lane(along_y[back + 2], BLOCK_C)
                    plane_by_x += line_by_x * _per_lane(along_y[back], BLOCK_C)
                by_mask += plane * _per_lane(along_z[up], BLOCK_C)
                by_z += plane * _per_lane(along_z[up + 2], BLOCK_C)
                by_y += plane_by_y * _per_lane(along_z[up], BLOCK_C)
                by_x += plane_by_x * _per_lane(along_z[up], BLOCK_C)
            for up in tl.static_range(AXES - 1):
                for back in tl.static_range(2):
                    grads_at = grad_table + points + _step(size, up, back, ROW)
                    for beside in tl.static_range(2):
                        share = scale * along_z[up] * along_y[back] * along_x[beside]
                        grad = grad_samples * share[:, None]
                        if fixed_point is not None:
                            grad = (grad * tl.load(fixed_point)).to(tl.int64)
                        tl.atomic_add(grads_at + beside * ROW, grad, (share != 0)[:, None], sem="relaxed")
        by_offset = grad_offset + (sample * (GROUPS * TAPS) + entry) * AXES * voxels_out + voxel
        kind = grad_offset.dtype.element_ty
        by_x = tl.sum(by_x, 1) * scale
        by_y = tl.sum(by_y, 1) * scale
        if AXES == 3:
            # one store for all: each would be handed round between threads by itself
            by_z = tl.sum(by_z, 1) * scale
            by_axes = tl.join(tl.join(by_z, by_y), tl.join(by_x, by_x))
            axis = tl.arange(0, 2)[:, None] + 2 * tl.arange(0, 2)[None, :]
            all_axes = by_offset[:, None, None] + axis[None, :, :] * tl.cast(voxels_out, tl.int64)
            tl.store(all_axes, by_axes.to(kind), exists[:, None, None] & (axis < 3)[None, :, :])
        else:
            tl.store(by_offset, by_y.to(kind), exists)
            tl.store(by_offset + tl.cast(voxels_out, tl.int64), by_x.to(kind), exists)
        if mask is not None:
            by_entry = grad_mask + (sample * (GROUPS * TAPS) + entry) * voxels_out + voxel
            tl.store(by_entry, tl.sum(by_mask, 1).to(grad_mask.dtype.element_ty), exists)


@triton.jit
def gradient_by_weight(
    table,
    offset,
    offset_strides,
    mask,
    mask_strides,
    grad_output,
    partial,
    size,
    output_size,
    stride,
    padding,
    step,
    tiles,
    all_tiles,
    parts,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    AXES: tl.constexpr,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dW_k = sum over voxels of dy S_k^T: for one entry, block of outputs and channels, and every so manieth tile.

    Neighbouring programs compute different entries of the same tiles, at about the same time, so that all but the first
    find `grad_output` and the rows of the table in the second-level cache. `partial` (parts, entries, OUT, C) is summed
    afterwards, always in the same order.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    ROW: tl.constexpr = GROUPS * C
    entry = tl.program_id(0) % (GROUPS * TAPS)
    part = tl.program_id(0) // (GROUPS * TAPS)
    outputs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    channels = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_OUT, BLOCK_C), tl.float32)
    next_sample, next_z, next_y, next_x = tile_at(part, tiles, output_size, TILE)
    place, voxel, exists = voxels_of(next_z, next_y, next_x, output_size, TILE)
    shifts = offset + tl.cast(next_sample, tl.int64) * offset_strides[0]
    next_shift_z, next_shift_y, next_shift_x = shifts_of(shifts, offset_strides[1], entry, voxel, exists, AXES)
    for tile in range(part, all_tiles, parts):
        sample = tl.cast(next_sample, tl.int64)
        place, voxel, exists = voxels_of(next_z, next_y, next_x, output_size, TILE)
        shift_z, shift_y, shift_x = next_shift_z, next_shift_y, next_shift_x

        following = tl.minimum(tile + parts, all_tiles - 1)
        next_sample, next_z, next_y, next_x = tile_at(following, tiles, output_size, TILE)
        _, next_voxel, next_exists = voxels_of(next_z, next_y, next_x, output_size, TILE)
        shifts = offset + tl.cast(next_sample, tl.int64) * offset_strides[0]
        next_shift_z, next_shift_y, next_shift_x = shifts_of(
            shifts, offset_strides[1], entry, next_voxel, next_exists, AXES
        )

        row, along_z, along_y, along_x = sampling_points(
            shift_z, shift_y, shift_x, entry, place, size, stride, padding, step, KERNEL, AXES
        )
        scale = _modulation(mask, mask_strides, sample, entry, voxel, exists)
        rows = table + (sample * size[0] * size[1] * size[2] + row) * ROW + entry // TAPS * C
        samples = _interpolate(rows, size, along_z, along_y, along_x, scale, channels, ROW, AXES)
        places = _places(grad_output, sample, outputs[:, None], voxel[None, :], output_size, OUTPUTS)
        grads = tl.load(places, (outputs < OUTPUTS)[:, None] & exists[None, :], 0.0)
        sums = tl.dot(grads, samples.to(grads.dtype), sums, input_precision=PRECISION)
    block = ((tl.cast(part, tl.int64) * (GROUPS * TAPS) + entry) * OUT + outputs)[:, None] * C + channels[None, :]
    tl.store(partial + block, sums)


@triton.jit
def _interpolate(rows, size, along_z, along_y, along_x, scale, channels, ROW: tl.constexpr, AXES: tl.constexpr):
    """Samples (voxels, channels): sums over the 4 or 8 points around each position."""
    samples = tl.zeros((rows.shape[0], channels.shape[0]), tl.float32)
    for up in tl.static_range(AXES - 1):
        for back in tl.static_range(2):
            points = (rows + _step(size, up, back, ROW))[:, None] + channels[None, :]
            for beside in tl.static_range(2):
                share = along_z[up] * along_y[back] * along_x[beside] * scale
                samples += share[:, None] * tl.load(points + beside * ROW).to(tl.float32)
    return samples


@triton.jit
def _fours(values):
    """(voxels, channels) as 4 tensors (voxels, lanes): of every 4 neighbouring channels, which one thread holds."""
    even, odd = tl.split(tl.reshape(values, (values.shape[0], values.shape[1] // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _sum_of_four(values):
    first, second, third, fourth = _fours(values)
    return first + second + third + fourth


@triton.jit
def _per_lane(values, CHANNELS: tl.constexpr):
    """(voxels,) as (voxels, lanes), distributed over threads as `_fours` does it."""
    first, _, _, _ = _fours(tl.broadcast_to(values[:, None], (values.shape[0], CHANNELS)))
    return first


@triton.jit
def _step(size, up: tl.constexpr, back: tl.constexpr, ROW: tl.constexpr):
    """From the lowest point around a position to another one, in elements; 0 along an axis of a single point."""
    above = tl.where(size[0] > 1, size[1] * size[2], 0)
    behind = tl.where(size[1] > 1, size[2], 0)
    return tl.cast(up * above + back * behind, tl.int64) * ROW


@triton.jit
def _modulation(mask, strides, sample, entry, voxel, exists):
    """Factor of each sample: the mask's where there is one, 0 beyond the map."""
    if mask is None:
        return exists.to(tl.float32)
    else:  # not left out: Triton compiles what follows an `if`, whichever way it goes
        values = mask + sample * strides[0] + tl.cast(entry, tl.int64) * strides[1] + voxel
        return tl.load(values, exists, 0.0).to(tl.float32)


@triton.jit
def _places(tensor, sample, outputs, voxels, output_size, OUTPUTS: tl.constexpr):
    """Addresses in a tensor (B, OUTPUTS, voxels out) for outputs and voxels that broadcast."""
    return tensor + (sample * OUTPUTS + outputs) * (output_size[0] * output_size[1] * output_size[2]) + voxels
