"""CE-Net, the context encoder network for 2D medical image segmentation (Gu et al., IEEE TMI 38(10), 2019).

Written from its paper: a ResNet-34 encoder without its classifier; a dense atrous convolution block (DAC) and residual
multi-kernel pooling (RMP) on the coarsest features; a decoder that adds the encoder's features at each level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet34

WIDTHS = (64, 128, 256, 512)  # of ResNet-34's stages, at 1/4, 1/8, 1/16 and 1/32 of the input
DIVISOR = 32
POOLING = (2, 3, 5, 6)


class CENet(nn.Module):
    """CE-Net.

    Args:
        input_channels: of the images; the first convolution has as many.
        num_classes: channels of the output.

    Shape:
        - input: (B, input_channels, H, W); H and W are multiples of 32.
        - output: (B, num_classes, H, W), logits.
    """

    def __init__(self, input_channels: int, num_classes: int) -> None:
        super().__init__()
        resnet = resnet34(weights=None)
        if input_channels != 3:
            resnet.conv1 = nn.Conv2d(input_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.avgpool = resnet.fc = nn.Identity()
        self.encoder = resnet
        # skip connections: nothing happens there, and a name to hook something in
        self.skips = nn.ModuleList(nn.Identity() for _ in WIDTHS[:-1])
        self.atrous = DenseAtrousConvolution(WIDTHS[-1])
        self.pooling = ResidualMultiKernelPooling(WIDTHS[-1])
        below = (*WIDTHS[1:-1], WIDTHS[-1] + len(POOLING))
        self.decoder = nn.ModuleList(
            DecoderBlock(before, after) for before, after in zip(below, WIDTHS[:-1], strict=True)
        )
        self.finest = DecoderBlock(WIDTHS[0], WIDTHS[0])
        self.head = nn.Sequential(
            nn.ConvTranspose2d(WIDTHS[0], 32, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, num_classes, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        encoder = self.encoder
        x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(x))))  # (B, 64, H / 4, W / 4)
        features = []
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = stage(x)
            features.append(x)
        x = self.pooling(self.atrous(x))  # (B, 516, H / 32, W / 32)
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](x) + self.skips[level](features[level])
        output: Tensor = self.head(self.finest(x))
        return output

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over the weights of a ResNet-34 trained on images of three channels.

        Where the input has another number of channels, each gets the mean of the three filters, scaled so that equal
        channels give what they gave.
        """
        own = {name: value for name, value in weights.items() if not name.startswith("fc.")}
        channels = self.encoder.conv1.in_channels
        if channels != 3:
            own["conv1.weight"] = own["conv1.weight"].mean(1, keepdim=True).repeat(1, channels, 1, 1) * 3 / channels
        self.encoder.load_state_dict(own)


class DenseAtrousConvolution(nn.Module):
    """DAC: four cascades of atrous convolutions with receptive fields of 3, 7, 9 and 19, added to the input.

    The cascades share their convolutions, as in the code that the authors have published; the paper leaves it open.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rate_1, self.rate_3, self.rate_5 = (
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in (1, 3, 5)
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.rate_1(x)
        one_three = self.rate_3(one)
        cascades = (self.rate_3(x), one_three, self.rate_5(one_three))
        return x + F.relu(one) + sum(F.relu(self.mix(cascade)) for cascade in cascades)


class ResidualMultiKernelPooling(nn.Module):
    """RMP: the input, and one channel from each of four max poolings; (B, C, H, W) -> (B, C + 4, H, W).

    On features smaller than a kernel, below 192 pixels of the input, the whole of them is pooled. The 1x1 convolution
    is shared, as above.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        context = []
        for kernel in POOLING:
            pooled = F.max_pool2d(x, [min(kernel, extent) for extent in size])
            context.append(F.interpolate(self.reduce(pooled), size, mode="bilinear", align_corners=False))
        return torch.cat((x, *context), dim=1)


class DecoderBlock(nn.Sequential):
    """A 1x1 convolution, a transposed one that doubles the size, and a 1x1 convolution."""

    def __init__(self, before: int, after: int) -> None:
        inner = before // 4
        super().__init__(
            nn.Conv2d(before, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, after, 1),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )
