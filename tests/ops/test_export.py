"""Networks with LFAM leave PyTorch: as an exported program, in plain operations, and as ONNX in onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_godc.alignment import LFAMConfig, align_skips
from nnunet_godc.ops import decompositions, deform_conv, export_onnx
from nnunet_godc.ops.export import _sample_tap_by_tap
from tests.ops.test_deform_conv import TorchvisionsTestCase

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="onnx, onnxruntime or onnxscript is not installed",
)


def network(dimensions: int) -> nn.Module:
    """Two stages, hence one skip, with alignment that has learnt something."""
    convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
    unet = PlainConvUNet(
        input_channels=1,
        n_stages=2,
        features_per_stage=[4, 6],
        conv_op=convolution,
        kernel_sizes=[[3] * dimensions] * 2,
        strides=[[1] * dimensions, [2] * dimensions],
        n_conv_per_stage=1,
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    )
    align_skips(unet, LFAMConfig(modulation=dimensions == 2))
    torch.manual_seed(0)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.4)
    return unet.eval()


def patch(dimensions: int) -> torch.Tensor:
    size = (4, 8, 12)[-dimensions:]
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tap_by_tap_it_is_the_same_with_all_arguments(dimensions: int) -> None:
    case = TorchvisionsTestCase(dimensions, 2, False, torch.float32)
    ours = case.ours()
    numbers = (case.stride, case.padding, case.dilation, case.offset_groups)
    plain = _sample_tap_by_tap(case.input, case.offset, case.weight, case.bias, case.mask, *numbers)
    torch.testing.assert_close(plain, ours, rtol=0, atol=2e-5)


def test_tap_by_tap_in_plane_offsets_leave_the_first_axis_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    input, offset, weight = (
        torch.randn(shape, generator=generator) for shape in ((2, 3, 4, 5, 6), (2, 54, 4, 5, 6), (2, 3, 3, 3, 3))
    )
    numbers = ([1, 1, 1], [1, 1, 1], [1, 1, 1], 1)
    plain = _sample_tap_by_tap(input, offset, weight, None, None, *numbers)
    torch.testing.assert_close(plain, deform_conv(input, offset, weight, padding=1), rtol=0, atol=1e-4)


def test_an_exported_program_needs_nothing_of_ours_once_it_is_decomposed() -> None:
    unet, input = network(2), patch(2)
    program = torch.export.export(unet, (input,))
    assert "nnunet_godc.deform_conv" in str(program.graph)
    torch.testing.assert_close(program.module()(input), unet(input))
    plain = program.run_decompositions(decompositions())
    assert "nnunet_godc" not in str(plain.graph)
    torch.testing.assert_close(plain.module()(input), unet(input), rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("dimensions", [2, 3])
def test_onnxruntime_computes_what_pytorch_does(dimensions: int, tmp_path: Path) -> None:
    import onnxruntime

    unet, input = network(dimensions), patch(dimensions)
    export_onnx(unet, input, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    other = input.flip(-1)  # than the one that it was exported with
    [output] = session.run(["output"], {"input": other.numpy()})
    expected = unet(other)
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    unet, input = network(2), patch(2)
    with pytest.raises(ValueError, match="call its eval"):
        export_onnx(unet.train(), input, tmp_path / "model.onnx")
