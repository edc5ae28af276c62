"""The Triton kernels on CPU tensors, in Triton's interpreter, against plain PyTorch in float64."""

import itertools

import torch

from nnunet_godc.losses import _fused_torch, _fused_triton


def check(classes, voxels, *, regions, ignored, scale=1.0, dtype=torch.float32, target=torch.float32, last=False):
    torch.manual_seed(0)
    logits = (scale * torch.randn(2, classes, voxels)).to(dtype)
    if last:
        logits = logits.mT.contiguous().mT
    if regions:
        reference = torch.rand(2, classes + ignored, voxels) < 0.4
    else:
        reference = torch.randint(classes + ignored, (2, 1, voxels))
    arguments = reference.to(target), regions, classes if ignored and not regions else None
    expected = _fused_torch.sums(logits.double(), *arguments)
    sums = _fused_triton.sums(logits, *arguments)
    torch.testing.assert_close(sums.double(), expected, rtol=2e-6, atol=2e-6)
    weights = torch.linspace(-1, 1, sums.numel()).view(sums.shape)
    gradient = _fused_triton.gradient(weights, logits, *arguments)
    expected = _fused_torch.gradient(weights.double(), logits.double(), *arguments)
    assert gradient.dtype == dtype
    assert gradient.stride() == logits.stride()
    # the interpreter cuts digits off where a GPU rounds
    rounding = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=rounding * expected.abs().max().item())


for regions, ignored in itertools.product((False, True), repeat=2):
    both = {"regions": regions, "ignored": ignored}
    check(3, 2500, **both)
    check(2, 1, **both)
    check(3, 1100, **both, scale=100, dtype=torch.bfloat16, target=torch.uint8, last=True)
    check(14, 301, **both, scale=10, dtype=torch.float16, target=torch.int16)
    check(105, 70, **both, target=torch.int64)
    check(200, 40, **both, dtype=torch.float16, last=True, target=torch.bool if regions else torch.int16)
check(1, 700, regions=True, ignored=True, target=torch.bool)

# more tiles than programs
_fused_triton.PROGRAMS = 4
check(3, 9000, regions=False, ignored=True)

logits, labels = torch.zeros(1, 3, 40), torch.zeros(1, 1, 40)
labels[0, 0, 5] = 3
assert _fused_triton.sums(logits, labels, False, None)[0, -2].isnan(), "a label that is no class"
assert _fused_triton.sums(logits, labels, False, 3).isfinite().all()
labels[0, 0, 5] = 0
logits[0, 1, 7] = torch.nan
assert _fused_triton.sums(logits, labels, False, None)[0, [3, 4, 5, -2]].isnan().all(), "a NaN logit"
