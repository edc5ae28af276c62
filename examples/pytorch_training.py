"""GODC and LFAM in a plain PyTorch training loop, with a U-Net of one's own.

    python examples/pytorch_training.py      # half a minute on two CPU cores

Discs of very different sizes in noise stand for lesions. In Lightning, `training_step` returns what `loss` is here;
`DataParallel` splits batches and with them what GODC weighs against each other, `ddp` gathers it over all ranks.
"""

import argparse
from itertools import pairwise

import torch
from torch import Tensor, nn

from nnunet_godc.alignment import LateralFeatureAlignment
from nnunet_godc.losses import MonaiGODCLoss

SIZE = 64


class UNet(nn.Module):
    """Three levels; LFAM stands where a skip connection leaves the encoder for the decoder."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            block(before, after) for before, after in zip((1, *widths[:-1]), widths, strict=True)
        )
        self.align = nn.ModuleList(LateralFeatureAlignment(width, kernel_size=(3, 3)) for width in widths[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, width, 2, 2) for width, below in pairwise(widths))
        self.decoder = nn.ModuleList(block(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, stage in enumerate(self.encoder):
            x = stage(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            aligned = self.align[level](skips[level])  # the skip as it was, at first
            x = self.decoder[level](torch.cat((aligned, self.up[level](x)), dim=1))
        return self.head(x)


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.InstanceNorm2d(after, affine=True), nn.LeakyReLU())


def discs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 1, H, W) and their labels (B, 1, H, W), 0 and 1."""
    radius = torch.empty(count, 1, 1, 1).uniform_(3, 20, generator=generator)
    centre = radius + torch.rand(count, 2, 1, 1, generator=generator) * (SIZE - 2 * radius)
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))
    labels = (grid - centre).square().sum(1, keepdim=True) < radius.square()
    return labels + 0.7 * torch.randn(labels.shape, generator=generator), labels.long()


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = UNet(classes=2)
    # labels in, logits in; the background does not count
    godc = MonaiGODCLoss(to_onehot_y=True, softmax=True, include_background=False)
    cross_entropy = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(arguments.steps):
        images, labels = discs(8, generator)
        logits = network(images)
        loss = godc(logits, labels) + cross_entropy(logits, labels[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    images, labels = discs(32, generator)
    with torch.no_grad():
        predicted = network(images).argmax(1, keepdim=True)
    dice = (2 * (predicted * labels).sum((1, 2, 3)) / (predicted + labels).sum((1, 2, 3))).mean().item()
    print(f"Dice on 32 new images: {dice:.3f}")
    return dice


if __name__ == "__main__":
    main()
