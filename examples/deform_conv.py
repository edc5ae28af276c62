"""deform_conv by itself: a deformable convolution learns where to read.

    python examples/deform_conv.py    # seconds

A volume is moved by a vector that nobody tells. One tap that starts at its own voxel, with one offset for all voxels,
finds the vector by the gradient of the offset alone.
"""

import torch
from torch.nn import functional as F

from nnunet_godc.ops import available_backends, deform_conv

SHIFT = torch.tensor([1.3, -0.8, 0.6])  # (z, y, x) in voxels


def main() -> None:
    print("backends:", {name: reason or "usable" for name, reason in available_backends().items()})
    torch.manual_seed(0)
    smooth = F.avg_pool3d(torch.randn(1, 4, 28, 28, 28), 5, stride=1)  # (1, 4, 24, 24, 24)
    identity = torch.eye(4).view(4, 4, 1, 1, 1)  # (out, in, 1, 1, 1): one tap, which copies what it reads
    moved = deform_conv(smooth, SHIFT.view(1, 3, 1, 1, 1).expand(1, 3, 24, 24, 24), identity)

    offset = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        read = deform_conv(smooth, offset.view(1, 3, 1, 1, 1).expand(1, 3, 24, 24, 24), identity)
        loss = F.mse_loss(read[..., 4:-4, 4:-4, 4:-4], moved[..., 4:-4, 4:-4, 4:-4])  # away from the border
        loss.backward()
        optimizer.step()
    print(f"moved by {SHIFT.tolist()}, found {[round(value, 3) for value in offset.tolist()]}")
    print(f"largest error: {(offset.detach() - SHIFT).abs().max():.4f} voxels")


if __name__ == "__main__":
    main()
