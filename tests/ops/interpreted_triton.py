"""The GPU kernels in Triton's interpreter: run with TRITON_INTERPRET=1, which counts before Triton is imported.

Prints per case how far the output and each gradient are from the reference in float64, relative to its largest value.
"""

import json
import sys
import traceback
from dataclasses import dataclass, replace

import torch

from nnunet_godc.ops import _reference, _triton, _triton_launch
from nnunet_godc.ops._geometry import Arguments, output_size


@dataclass(frozen=True)
class Case:
    size: tuple[int, ...] = (2, 3, 4)
    kernel: tuple[int, ...] = (1, 1, 2)
    batch: int = 1
    channels: int = 16
    outputs: int = 16
    offset_groups: int = 1
    displaced: int = 3
    modulated: bool = False
    stride: int = 1
    dilation: int = 1
    spread: float = 2.0  # of the offsets: many reach outside
    dtype: torch.dtype = torch.float32
    offset_dtype: torch.dtype = torch.float32
    processors: int = 1  # of the GPU that is imagined: more cut the work finer
    deterministic: bool = False
    strided: bool = False
    workspace: int = _triton.WORKSPACE


_PLAIN = Case()
_HALF = replace(_PLAIN, dtype=torch.float16, offset_dtype=torch.float16)
CASES = {
    "single precision": _PLAIN,
    "half precision": _HALF,
    "half precision, offsets in single": replace(_HALF, offset_dtype=torch.float32),
    "several tiles": replace(_PLAIN, size=(3, 3, 17), outputs=3),
    "3 x 3 x 3": replace(_HALF, kernel=(3, 3, 3)),
    "in-plane": replace(_PLAIN, kernel=(1, 3, 3), displaced=2),
    "in-plane offsets of taps in several planes": replace(_PLAIN, kernel=(3, 1, 2), displaced=2),
    "modulated": replace(_PLAIN, modulated=True),
    "modulated, half precision, batch of two": replace(_HALF, modulated=True, batch=2),
    "2D": replace(_PLAIN, size=(5, 7), kernel=(2, 2), displaced=2),
    "2D, modulated, half precision": replace(_HALF, size=(5, 7), kernel=(2, 2), displaced=2, modulated=True),
    "stride": replace(_PLAIN, size=(3, 5, 4), kernel=(1, 2, 2), stride=2),
    "stride, dilation, modulated, in-plane": replace(
        _HALF, size=(3, 5, 9), kernel=(2, 1, 2), stride=2, dilation=2, modulated=True, displaced=2
    ),
    "dilation": replace(_PLAIN, size=(3, 5, 4), kernel=(1, 2, 2), dilation=2),
    "one channel": replace(_PLAIN, channels=1, outputs=1),
    "channels that are no power of two": replace(_HALF, channels=40, outputs=33),
    "many channels": replace(_HALF, channels=72, outputs=80, kernel=(1, 1, 1)),
    "outputs in several blocks": replace(_HALF, outputs=320, kernel=(1, 1, 1)),
    "offset groups": replace(_PLAIN, channels=6, offset_groups=3, modulated=True),
    "offset groups, half precision, in-plane": replace(_HALF, channels=32, offset_groups=2, displaced=2),
    "one slice": replace(_PLAIN, size=(1, 3, 4)),
    "one row": replace(_PLAIN, size=(3, 1, 4)),
    "far outside": replace(_PLAIN, spread=10.0),
    "work cut fine, as on a large GPU": replace(_HALF, size=(3, 4, 5), kernel=(1, 2, 2), processors=16),
    "samples of the batch one by one": replace(_PLAIN, batch=3, modulated=True, workspace=0),
    "not contiguous": replace(_PLAIN, modulated=True, batch=2, strided=True),
    "deterministic": replace(_PLAIN, deterministic=True, modulated=True),
    "deterministic, half precision": replace(_HALF, deterministic=True),
}


def tensors(case):
    """Grad of the output, input, offset, weight, bias and mask of a case, and the rest of the arguments."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        values = torch.randn(shape, generator=generator)
        return values.transpose(0, -1).contiguous().transpose(0, -1) if case.strided else values

    taps = torch.Size(case.kernel).numel()
    padding = [case.dilation * (k // 2) for k in case.kernel]
    strides, dilations = [case.stride] * len(case.kernel), [case.dilation] * len(case.kernel)
    size = output_size(case.size, case.kernel, strides, padding, dilations)
    entries = case.offset_groups * taps
    return (
        normal(case.batch, case.outputs, *size).to(case.dtype),
        normal(case.batch, case.channels, *case.size).to(case.dtype),
        (normal(case.batch, entries * case.displaced, *size) * case.spread).to(case.offset_dtype),
        normal(case.outputs, case.channels, *case.kernel).to(case.dtype),
        normal(case.outputs).to(case.dtype),
        normal(case.batch, entries, *size).to(case.dtype) if case.modulated else None,
        (padding, dilations, case.offset_groups, strides),
    )


def run(backend, grad, input, offset, weight, bias, mask, rest):
    """Output and gradients."""
    arguments = Arguments(input, offset, weight, mask, *rest)
    return [backend.forward(arguments, bias), *backend.backward(grad, arguments)]


def errors(case):
    """Per result the largest difference from the reference, relative to its largest value."""
    *values, rest = tensors(case)
    _triton_launch._processors = lambda device: case.processors
    _triton.WORKSPACE = case.workspace
    torch.use_deterministic_algorithms(case.deterministic)
    ours = run(_triton, *values, rest)
    if case.deterministic:
        again = run(_triton, *values, rest)
        assert all(torch.equal(first, second) for first, second in zip(ours, again, strict=True))
    expected = run(_reference, *(None if value is None else value.double() for value in values), rest)
    result = {}
    for name, value, reference in zip(("output", "input", "offset", "weight", "mask"), ours, expected, strict=True):
        assert value.shape == reference.shape, f"{name}: {value.shape}, expected {reference.shape}"
        assert value.is_contiguous(), f"{name} is not contiguous"
        if value.numel():
            difference = (value.double() - reference).abs().max() / reference.abs().max().clamp_min(1e-6)
            result[name] = difference.item()
    return result


def special_values(deterministic):
    """What an offset that is no number, or infinite, makes of output and gradients, beside the reference's."""
    torch.use_deterministic_algorithms(deterministic)
    input, offset, weight = torch.ones(1, 16, 2, 3, 4), torch.zeros(1, 3, 2, 3, 4), torch.ones(16, 16, 1, 1, 1)
    offset[0, 0, 0, 1, 2] = float("nan")
    offset[0, 1, 1, 1, 1] = float("inf")
    offset[0, 2, 1, 2, 0] = -float("inf")
    grad, mask = torch.ones(1, 16, 2, 3, 4), -torch.ones(1, 1, 2, 3, 4)
    rest = [0, 0, 0], [1, 1, 1], 1
    results = [run(backend, grad, input, offset, weight, None, mask, rest) for backend in (_triton, _reference)]
    return [[value.tolist() for value in values] for values in results]


def infinite_gradient():
    """How many values of the input's gradient are finite where the output's gradient is infinite once."""
    torch.use_deterministic_algorithms(True)
    grad, input, offset, weight, _, _, rest = tensors(_PLAIN)
    grad[0, 0, 0, 0, 0] = float("inf")
    return _triton.backward(grad, Arguments(input, offset, weight, None, *rest))[0].isfinite().sum().item()


def zero_gradient():
    """The largest value of the input's gradient where the output's gradient is zero."""
    torch.use_deterministic_algorithms(True)
    grad, input, offset, weight, _, _, rest = tensors(_PLAIN)
    return _triton.backward(grad.zero_(), Arguments(input, offset, weight, None, *rest))[0].abs().max().item()


def main():
    torch.set_num_threads(1)
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = errors(case)
        except Exception:
            results[name] = traceback.format_exc()
    results["special values"] = special_values(deterministic=False)
    results["special values, deterministic"] = special_values(deterministic=True)
    results["infinite gradient"] = infinite_gradient()
    results["zero gradient"] = zero_gradient()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
