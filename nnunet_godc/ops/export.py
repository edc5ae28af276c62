"""Networks with deformable convolutions outside of this package: in plain operations of PyTorch, and as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_godc.ops._geometry import unravel

OPSET = 20  # the first whose GridSample takes volumes


def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's default decompositions with that of the deformable convolution.

    For `torch.export.ExportedProgram.run_decompositions`: the program then runs where this package is not installed.
    """
    return {**torch.export.default_decompositions(), torch.ops.nnunet_godc.deform_conv.default: _sample_tap_by_tap}


def export_onnx(network: nn.Module, example: Tensor, path: str | Path) -> None:
    """Writes a network, with its weights, as an ONNX model of opset 20 that needs no operator of ours.

    The model's input is called "input" and has the example's shape, its output "output". Half precision is not for it:
    positions have to be float32.

    Args:
        network: 2D or 3D, in evaluation mode, without deep supervision.
        example: a patch, (B, C, ...), float32.
        path: of the file to write.

    Raises:
        ImportError: if the packages onnx and onnxscript are not installed.
        ValueError: if the network is in training mode or has more than one output.
    """
    if network.training:
        raise ValueError("the network is in training mode; call its eval() before it is exported")
    from onnxscript import opset20

    # onnxscript translates grid_sample for images alone
    def grid_sampler_3d(input: Any, grid: Any, mode: int, padding_mode: int, align_corners: bool) -> Any:
        del mode, padding_mode  # as below
        return opset20.GridSample(input, grid, mode="linear", padding_mode="zeros", align_corners=int(align_corners))

    program = torch.export.export(network, (example,))
    outputs = len(program.graph_signature.user_outputs)
    if outputs != 1:
        raise ValueError(f"the network has {outputs} outputs; set its decoder.deep_supervision to False")
    torch.onnx.export(
        program.run_decompositions(decompositions()),
        (example,),
        path,
        input_names=["input"],
        output_names=["output"],
        opset_version=OPSET,
        custom_translation_table={torch.ops.aten.grid_sampler_3d.default: grid_sampler_3d},
        external_data=False,
        verbose=False,
        dynamo=True,
    )


def _sample_tap_by_tap(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_groups: int,
) -> Tensor:
    """`deform_conv` as one grid_sample and one convolution of kernel 1 per tap, which need little memory."""
    taps, axes, groups = weight.shape[2:].numel(), input.dim() - 2, input.shape[1] // weight.shape[1]
    size_out = offset.shape[2:]
    offsets = (
        offset.float().unflatten(1, (offset_groups, taps, -1)).unbind(3)
    )  # per displaced axis (B, groups, taps, ...)
    tap_places = unravel(torch.arange(taps, device=input.device), tuple(weight.shape[2:]))
    grid = []
    for axis, size in enumerate(input.shape[2:]):
        voxels = torch.arange(size_out[axis], device=input.device) * stride[axis]
        tap_place = (tap_places[axis] * dilation[axis] - padding[axis]).view(-1, *[1] * axes)
        positions = (voxels.view(-1, *[1] * (axes - axis - 1)) + tap_place).float()  # (taps, ...)
        displaced = axis - (axes - len(offsets))
        if displaced >= 0:
            positions = positions + offsets[displaced]
        # grid_sample counts from -1 to 1, from the border of the first voxel to that of the last
        grid.append(((2 * positions + 1) / size - 1).expand(input.shape[0], offset_groups, taps, *size_out))
    grids = torch.stack(grid[::-1], dim=-1)  # and has the axes in reverse, x first
    masks = None if mask is None else mask.unflatten(1, (offset_groups, taps, 1))
    convolve = F.conv3d if axes == 3 else F.conv2d
    output = torch.zeros((), device=input.device, dtype=input.dtype) if bias is None else bias.view(-1, *[1] * axes)
    for tap in range(taps):
        samples = []
        for group, channels in enumerate(input.float().chunk(offset_groups, dim=1)):
            sampled = F.grid_sample(channels, grids[:, group, tap], align_corners=False)
            samples.append(sampled if masks is None else sampled * masks[:, group, tap])
        matrix = weight.flatten(2)[..., tap].view(*weight.shape[:2], *[1] * axes)
        output = output + convolve(torch.cat(samples, dim=1).to(input.dtype), matrix, groups=groups)
    return output
