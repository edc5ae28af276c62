"""Deformable convolution on NVIDIA GPUs with the gradient by samples in CUDA C++, for 16-bit tensors.

Triton's kernel is bound by what it adds to memory. `deform_conv_gradient.cu` sorts a tile's samples by where they lie
and adds a tile's gradient once; the rest is `_triton`'s. It has not run on a GPU yet, hence the switch; see
docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nnunet_godc.kernels import triton as launching
from nnunet_godc.kernels.triton import WARP
from nnunet_godc.ops import _nvrtc, _triton
from nnunet_godc.ops._geometry import Arguments
from nnunet_godc.ops._triton_launch import Call, _in_3d, _processors

SWITCH = "NNUNET_GODC_CUDA_GRADIENT"  # environment variable; 1 switches this backend on
DTYPES = (torch.float16, torch.bfloat16)
SOURCE = Path(__file__).with_name("deform_conv_gradient.cu")
KERNEL = "gradient_by_samples"
OUTPUTS = 512  # at most: their gradient at a tile has to fit into shared memory
VOXELS = 64  # of a tile
CELLS_X = 15  # of the window along x: a fragment of the tensor cores has 16 voxels
MARGIN = 2  # voxels beyond the regular taps along z and y; samples further away are added one by one
MOST_CELLS = 14  # along z and y, however far apart taps are
MANY_WARPS, FEW_WARPS = 16, 8  # where a multiprocessor holds one block, or two


def why_unusable() -> str | None:
    """None where it is switched on and a GPU runs the kernels, else the reason."""
    if os.environ.get(SWITCH) != "1":
        return f"not measured on a GPU yet; {SWITCH}=1 switches it on"
    return _triton.why_unusable() or _why_not_compiled()


@cache
def _why_not_compiled() -> str | None:
    return launching.why_unusable(_try, "the gradient takes Triton's kernel", "NVRTC")


def _try() -> None:
    one = torch.ones(1, 16, 2, 2, device="cuda", dtype=torch.float16)
    backward(one[:, :1], Arguments(one, one[:, :2], one[:, :, :1, :1], None, [0, 0], [1, 1], 1))


def supports(arguments: Arguments) -> bool:
    """Whether this call can be computed here: as `_triton`, in 16 bits, not modulated, in any order of additions."""
    return (
        _triton.supports(arguments)
        and arguments.input.dtype in DTYPES
        and arguments.offset.dtype in (arguments.input.dtype, torch.float32)
        and arguments.mask is None
        and arguments.weight.shape[0] <= OUTPUTS
        and arguments.input.shape[0] * arguments.offset_groups < 2**16
        # a sample's values are counted by 32 bits, padded channels with them
        and arguments.input.shape[2:].numel() * (arguments.input.shape[1] + 64 * arguments.offset_groups) < 2**30
        and not torch.are_deterministic_algorithms_enabled()
    )


forward = _triton.forward


def backward(grad_output: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by input, offset and weight; see the reference's for the equations."""
    return _triton.backward(grad_output, arguments, _gradient_by_samples)


def _gradient_by_samples(call: Call, grad_output: Tensor, grad_offset: Tensor, grad_mask: Tensor | None) -> Tensor:
    device = call.table.device
    grad_table = torch.zeros_like(call.table, dtype=torch.float32)
    grad_output = grad_output.to(call.table.dtype)
    launch = launch_gradient(call, grad_output, grad_table, grad_offset, _nvrtc.shared_memory(device))
    with torch.cuda.device(device):
        kernel = _kernel(device.index, tuple(launch.constants.items()), launch.shared_bytes)
        kernel.launch(launch.grid, launch.threads, launch.argument)
    return grad_table


@cache
def _kernel(device: int, constants: tuple[tuple[str, int], ...], shared_bytes: int) -> _nvrtc.Kernel:
    major, minor = torch.cuda.get_device_capability(device)
    return _nvrtc.Kernel(compile(dict(constants), 10 * major + minor), KERNEL, shared_bytes)


def compile(constants: dict[str, int], capability: int) -> bytes:
    """Machine code of the kernel for a compute capability (80, 90); needs no GPU."""
    return _nvrtc.compile(SOURCE.read_text(), SOURCE.name, capability, constants)


class Argument(ctypes.Structure):
    """What the kernel takes, `Arguments` in its source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("table", "offset", "weight", "grad_output")),
        *((name, ctypes.c_void_p) for name in ("grad_table", "grad_offset", "bound")),
        *((name, ctypes.c_int64) for name in ("offset_batch", "offset_channel")),
        *((name, ctypes.c_int * 3) for name in ("size", "output_size", "stride", "padding", "dilation")),
        *((name, ctypes.c_int) for name in ("groups", "channels", "outputs", "real_outputs")),
    )


@dataclass(frozen=True)
class Launch:
    """A launch of the kernel.

    Attributes:
        constants: that it is compiled for.
        grid: tiles, ranges of taps, samples of the batch with offset groups.
        threads: of a block.
        shared_bytes: of a block.
        argument: with the addresses of tensors.
        tensors: that have to live until it is launched.
    """

    constants: dict[str, int]
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    argument: Argument
    tensors: tuple[Tensor, ...]


def launch_gradient(
    call: Call, grad_output: Tensor, grad_table: Tensor, grad_offset: Tensor, shared_memory: int
) -> Launch:
    """The launch that adds to `grad_table`, float32 and shaped like `call.table`, and fills `grad_offset`.

    Args:
        call: the convolution; without a mask, in 16 bits.
        grad_output: (B, outputs, *output size), contiguous.
        grad_table: float32, shaped like `call.table`.
        grad_offset: as the call's offset, contiguous.
        shared_memory: bytes that a block may have.
    """
    geometry = call.geometry
    size, out = _in_3d(geometry.input_size, 1), _in_3d(geometry.output_size, 1)
    kernel, stride, dilation = (_in_3d(values, 1) for values in (geometry.kernel, geometry.stride, geometry.dilation))
    tile = (1, 8, 8) if out[0] == 1 else (2, 4, 8)
    # cells from the first tap's of the tile's first voxel to the last tap's of its last
    spans = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(tile, stride, kernel, dilation, strict=True)]
    displaced_z = geometry.displaced_axes == 3
    window_z = min(spans[0] + (2 * MARGIN - 1 if displaced_z else 0), MOST_CELLS)
    window_y = min(spans[1] + 2 * MARGIN - 1, MOST_CELLS)
    tiles = math.prod(math.ceil(n / part) for n, part in zip(out, tile, strict=True))
    outputs = call.kernel.shape[1]
    blocks_beside = geometry.batch * geometry.offset_groups

    def bytes_for(taps: int, warps: int) -> int:
        return shared_bytes(taps, geometry.displaced_axes, warps, (window_z, window_y), outputs)

    # All taps at once if they fit, as a tile's gradient is added for each part of them; fewer on small maps.
    warps = MANY_WARPS if bytes_for(1, MANY_WARPS) <= shared_memory else FEW_WARPS
    parts = min(geometry.taps, max(1, _processors(call.table.device) // (tiles * blocks_beside)))
    while parts < geometry.taps and bytes_for(math.ceil(geometry.taps / parts), warps) > shared_memory:
        parts += 1
    taps = math.ceil(geometry.taps / parts)
    two_blocks = 2 * (bytes_for(taps, FEW_WARPS) + 1024) <= shared_memory
    warps = FEW_WARPS if two_blocks else warps
    constants = {
        "HALF": call.table.dtype == torch.float16,
        "WIDE_OFFSETS": call.offset.dtype == torch.float32,
        "AXES": geometry.displaced_axes,
        "TAPS_AT_ONCE": taps,
        "WARPS": warps,
        "BLOCKS": 2 if two_blocks else 1,
        "WINDOW_Z": window_z,
        "WINDOW_Y": window_y,
        **{f"KERNEL_{axis}": value for axis, value in zip("ZYX", kernel, strict=True)},
        **{f"TILE_{axis}": value for axis, value in zip("ZYX", tile, strict=True)},
        "MARGIN_Z": MARGIN if displaced_z else 0,
        "MARGIN_Y": MARGIN,
        "MARGIN_X": max(0, (CELLS_X - spans[2] + 1) // 2),
    }
    table = call.table if call.table.data_ptr() % 16 == 0 else call.table.clone()
    weight = call.kernel.transpose(1, 2).contiguous()
    bound = weight.abs().sum(2, dtype=torch.float32).amax()
    tensors = (table, call.offset, weight, grad_output, grad_table, grad_offset, bound)
    argument = Argument(
        *(tensor.data_ptr() for tensor in tensors),
        *call.offset.stride()[:2],
        *((ctypes.c_int * 3)(*values) for values in (size, out, stride, _in_3d(geometry.padding, 0), dilation)),
        geometry.offset_groups,
        call.kernel.shape[2],
        outputs,
        call.outputs,
    )
    grid = (tiles, math.ceil(geometry.taps / taps), blocks_beside)
    return Launch(
        {key: int(value) for key, value in constants.items()},
        grid,
        WARP * warps,
        bytes_for(taps, warps),
        argument,
        tensors,
    )


def shared_bytes(taps: int, axes: int, warps: int, window: tuple[int, int], outputs: int) -> int:
    """Of a block: `Shared` in the kernel's source with the gradient of its outputs."""
    slots, bins = VOXELS * taps + 16, window[0] * window[1] + 2
    floats = (3 + axes) * slots + warps * 2 * (16 * (16 + 8) + 16)
    fixed = slots * 2 * 32 + 4 * (floats + 2 * bins + 2) + 2 * VOXELS * taps
    return math.ceil(fixed / 16) * 16 + 2 * VOXELS * (outputs + 8)
