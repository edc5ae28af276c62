"""nnU-Net's plan of LiTS and its training step in plain PyTorch, so that they run where nnU-Net is not installed.

tests/benchmarks compares the loss with nnU-Net's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# 3d_fullres of nnU-Net's plans for LiTS: one CT channel, background, liver and tumour.
PATCH_SIZE = (128, 128, 128)
BATCH_SIZE = 2
CLASSES = 3
FEATURES = (32, 64, 128, 256, 320, 320)


class SoftDice(nn.Module):
    """nnU-Net's Dice term, pooled over the batch or per sample, without the background."""

    def __init__(self, batch_dice: bool = True, smooth: float = 1e-5) -> None:
        super().__init__()
        self.batch_dice = batch_dice
        self.smooth = smooth

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        probabilities = logits.softmax(1)
        axes = tuple(range(2, logits.dim()))
        with torch.no_grad():
            one_hot = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
            one_hot.scatter_(1, labels.long(), 1)
            reference = one_hot[:, 1:].sum(axes)
        intersection = (probabilities[:, 1:] * one_hot[:, 1:]).sum(axes)
        prediction = probabilities[:, 1:].sum(axes)
        if self.batch_dice:
            intersection, prediction, reference = (x.sum(0) for x in (intersection, prediction, reference))
        dice = (2 * intersection + self.smooth) / (prediction + reference + self.smooth).clamp_min(1e-8)
        return -dice.mean()


class DiceAndCrossEntropy(nn.Module):
    """nnU-Net's compound: a Dice term, which it compiles on a GPU, and cross-entropy, which it does not.

    Args:
        dice: the Dice term.
        compiler: torch.compile's backend; None leaves the term as it is.
    """

    def __init__(self, dice: nn.Module, compiler: str | None = None) -> None:
        super().__init__()
        self.dice: Callable[..., Tensor] = dice if compiler is None else torch.compile(dice, backend=compiler)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.dice(logits, labels) + F.cross_entropy(logits, labels[:, 0].long())


class DeepSupervision(nn.Module):
    """A loss at every resolution, weighted 1, 1/2, 1/4, ...; the coarsest does not count, as in nnU-Net."""

    def __init__(self, loss: nn.Module, outputs: int) -> None:
        super().__init__()
        self.loss = loss
        weights = [2.0**-i for i in range(outputs - 1)]
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        parts = zip(self.weights, outputs[:-1], targets[:-1], strict=True)
        return torch.stack([weight * self.loss(output, target) for weight, output, target in parts]).sum()


def network(features: Sequence[int] = FEATURES) -> nn.Module:
    """nnU-Net's network for LiTS, on the CPU, with deep supervision and nnU-Net's initialisation."""
    # here, since the losses are measured also where it is not installed
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He

    stages = len(features)
    unet = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        n_conv_per_stage=[2] * stages,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=[2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    unet.apply(InitWeights_He(1e-2))
    return unet


def batch(size: Sequence[int], samples: int, stages: int, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """An image and its labels at every resolution: a large and a small object in each patch."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((samples, 1, *size), generator=generator)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, extent) for extent in size), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    labels = ((radius < 0.7).long() + (radius < 0.15).long()).expand(samples, 1, *size).float()
    targets = [labels[(..., *[slice(None, None, 2**stage)] * 3)].contiguous() for stage in range(stages - 1)]
    return image.to(device), [target.to(device) for target in targets]


class TrainingStep:
    """One step as nnU-Net's trainer makes it: autocast and scaled gradients on a GPU, clipping at 12, SGD.

    Args:
        model: the network, moved to the data's device.
        loss: of its outputs and the targets.
        data: as `batch` makes it.
        compiler: torch.compile's backend for the network; None leaves it as it is.
    """

    def __init__(
        self, model: nn.Module, loss: nn.Module, data: tuple[Tensor, list[Tensor]], compiler: str | None = None
    ) -> None:
        self.device = data[0].device
        self.bare = model.to(self.device)
        self.model: Any = self.bare if compiler is None else torch.compile(self.bare, backend=compiler)
        self.loss = loss
        self.data = data
        self.optimizer = torch.optim.SGD(
            self.bare.parameters(), lr=1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
        )
        self.scaler = torch.amp.GradScaler(enabled=self.device.type == "cuda")

    def __call__(self) -> None:
        image, targets = self.data
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            loss = self.loss(self.model(image), targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.bare.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # a gradient kept from step to step would count as memory of this candidate in the others' steps
        self.optimizer.zero_grad(set_to_none=True)

    def static_bytes(self) -> int:
        """What stays allocated between steps: weights and their momentum."""
        return sum(2 * parameter.numel() * parameter.element_size() for parameter in self.bare.parameters())
