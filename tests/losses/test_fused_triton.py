"""The GPU's kernels: in Triton's interpreter, compiled for GPUs that need not be there, and natively where one is."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nnunet_godc.losses import _fused_torch, _fused_triton, fused

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

if find_spec("triton") is not None:
    from benchmarks._compiled import resources


def test_interpreted_kernels_compute_what_plain_pytorch_does():
    # in a process of its own, since Triton reads when it is imported whether to interpret
    script = Path(__file__).with_name("interpreted_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def launches(classes, dtype, *, regions=False, ignored=False, last=False):
    """Both kernels on tensors without memory, of the size of nnU-Net's usual patch."""
    voxels = 128**3
    logits = torch.empty(2, classes, voxels, dtype=dtype, device="meta")
    if last:
        logits = logits.mT.contiguous().mT
    channels = classes + ignored if regions else 1
    target = torch.empty(2, channels, voxels, dtype=torch.bool if regions else torch.float32, device="meta")
    ignore_label = classes if ignored and not regions else None
    grad_sums = torch.empty(2, 3 * classes + 2, device="meta")
    return (
        _fused_triton.launch_sums(logits, target, regions, ignore_label),
        _fused_triton.launch_gradient(grad_sums, logits, target, regions, ignore_label),
    )


def assert_compile_without_spilling(capability, *arguments, at_most=0, **options):
    for launch in launches(*arguments, **options):
        assert resources(launch.compile(capability)).spilled <= at_most


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_for_few_classes_compile_without_spilling(capability):
    assert_compile_without_spilling(capability, 3, torch.float16)


def test_kernels_for_many_classes_compile_without_spilling():
    assert_compile_without_spilling(90, 105, torch.float16)


@pytest.mark.slow
# each capability and each dtype; all pairs would take the machine code of twice as many kernels
@pytest.mark.parametrize(("capability", "dtype"), [(80, torch.float16), (90, torch.bfloat16), (90, torch.float32)])
@pytest.mark.parametrize("classes", [3, 105, 256])
@pytest.mark.parametrize(
    "options",
    [{}, {"ignored": True}, {"regions": True}, {"regions": True, "ignored": True}],
    ids=lambda options: " ".join(options) or "labels",
)
def test_every_kernel_compiles_and_hardly_spills(capability, classes, dtype, options):
    # the assembler may put up to four registers aside to let one more program run beside
    assert_compile_without_spilling(capability, classes, dtype, at_most=16, **options)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 105])
def test_channels_may_lie_last(classes):
    for launch in launches(classes, torch.float16, last=True):
        assert launch.compile(80).asm["cubin"]


def test_one_region_compiles():
    """Numbers that are 1 are compiled in."""
    for launch in launches(1, torch.float16, regions=True, ignored=True):
        assert launch.compile(80).asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
class TestOnTheGPU:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("classes", [2, 3, 14, 105, 200])
    @pytest.mark.parametrize("regions", [False, True])
    def test_sums_and_gradient_are_those_of_plain_pytorch(self, dtype, classes, regions):
        logits = torch.randn(2, classes, 33, 41, 17, device="cuda").to(dtype).requires_grad_()
        channels = classes + 1 if regions else 1
        target = torch.randint(2 if regions else classes + 1, (2, channels, 33, 41, 17), device="cuda").float()
        arguments = target, regions, None if regions else classes
        assert fused._select(logits.flatten(2), target.flatten(2)) is _fused_triton
        sums = fused._soft_sums(logits, *arguments)
        weights = torch.linspace(-1, 1, sums.numel(), device="cuda").view(sums.shape)
        (gradient,) = torch.autograd.grad(sums, logits, weights)
        flat = logits.detach().double().flatten(2), target.flatten(2), *arguments[1:]
        torch.testing.assert_close(sums.double(), _fused_torch.sums(*flat), rtol=1e-5, atol=1e-5)
        expected = _fused_torch.gradient(weights.double(), *flat).view(logits.shape)
        rounding = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=rounding)

    def test_results_are_the_same_from_run_to_run(self):
        logits = torch.randn(2, 14, 64, 64, 64, device="cuda", requires_grad=True)
        labels = torch.randint(14, (2, 1, 64, 64, 64), device="cuda")
        results = []
        for _ in range(3):
            sums = fused._soft_sums(logits, labels, False, None)
            results.append((sums, torch.autograd.grad(sums.square().sum(), logits)[0]))
        for sums, gradient in results[1:]:
            assert sums.equal(results[0][0])
            assert gradient.equal(results[0][1])
