"""Where the skip features of other people's networks pass, so that LFAM can align them there.

An adapter reads a network's own attributes and says, finest level first, which module takes or gives the skip features
of each level. Nothing of these libraries is imported: a network is known by the full name of its class, since a
subclass may pass its features elsewhere, where a hook would not see them and LFAM would be off without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Skip:
    """The skip connection of one level of a network: the module through which its features pass.

    Attributes:
        module: name, as in `network.named_modules()`.
        channels: of the skip features.
        kernel_size: of LFAM at this level, odd, one number per axis, such as (3, 3, 3).
        argument: position or name of the argument of the module's `forward` that holds the features; None if they are
            what the module returns. A module that returns them to the encoder's next stage as well passes the aligned
            features to both; name the argument of a decoder's module, where that is not wanted.
        concatenated_with: number of channels that the features are concatenated with in that argument, as decoder
            features are; 0 if they pass alone. Offsets can be guided by these alone.
        first: whether the features are the first channels of the concatenation, not the last.
    """

    module: str
    channels: int
    kernel_size: Sequence[int]
    argument: int | str | None = None
    concatenated_with: int = 0
    first: bool = True

    def aligned(self, value: Tensor, align: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """What passes, with the skip features in it replaced by `align(skip, what they are concatenated with)`.

        Raises:
            ValueError: what passes has another number of channels.
        """
        others = self.concatenated_with
        if value.shape[1] != self.channels + others:
            together = f" and {others} more" if others else ""
            raise ValueError(
                f"LFAM: {value.shape[1]} channels pass through {self.module}, where its Skip says {self.channels}"
                f"{together}; correct its channels."
            )
        if not others:
            return align(value, None)
        if self.first:
            skip, guide = value.split((self.channels, others), dim=1)
            return torch.cat((align(skip, guide), guide), dim=1)
        guide, skip = value.split((others, self.channels), dim=1)
        return torch.cat((guide, align(skip, guide)), dim=1)


def skips_of(network: nn.Module, guided: bool) -> list[Skip] | None:
    """The skip connections of a network of a known class, finest first; None if the class is not known.

    Args:
        network: of one of the classes in `ADAPTERS`.
        guided: whether the features have to pass together with those of the decoder.
    """
    adapter = ADAPTERS.get(f"{type(network).__module__}.{type(network).__qualname__}")
    return None if adapter is None else adapter(network, guided)


def _monai_dynunet(network: Any, guided: bool) -> list[Skip]:
    blocks = network.upsamples
    skips = []
    for level, channels in enumerate(network.filters[: len(blocks)]):
        name = f"upsamples.{len(blocks) - 1 - level}"
        kernel = _per_axis(network.kernel_size[level], network.spatial_dims)
        if guided:
            together = {"concatenated_with": channels, "first": False}
            skips.append(
                Skip(module=f"{name}.conv_block", channels=channels, kernel_size=kernel, argument=0, **together)
            )
        else:
            skips.append(Skip(module=name, channels=channels, kernel_size=kernel, argument=1))
    return skips


def _monai_unet(network: Any, guided: bool) -> list[Skip]:
    # blocks of (down, SkipConnection, up) within each other; each up takes what came down, concatenated with the rest
    kernel = _per_axis(network.kernel_size, network.dimensions)
    below = [*network.channels[:-2], network.channels[-1]]
    skips, name = [], "model"
    for channels, others in zip(network.channels[:-1], below, strict=True):
        skips.append(
            Skip(module=f"{name}.2", channels=channels, kernel_size=kernel, argument=0, concatenated_with=others)
        )
        name += ".1.submodule"
    return skips


def _monai_attention_unet(network: Any, guided: bool) -> list[Skip]:
    # what leaves the attention gate, since that is what the decoder concatenates
    kernel = _per_axis(network.kernel_size, network.dimensions)
    skips, name = [], "model.1"
    for channels in network.channels[:-1]:
        if guided:
            together = {"argument": 0, "concatenated_with": channels}
            skips.append(Skip(module=f"{name}.merge", channels=channels, kernel_size=kernel, **together))
        else:
            skips.append(Skip(module=f"{name}.attention", channels=channels, kernel_size=kernel))
        name += ".submodule.1"
    return skips


def _monai_basic_unet(network: Any, guided: bool) -> list[Skip]:
    encoder = [network.conv_0, network.down_1, network.down_2, network.down_3]
    blocks = [f"upcat_{level + 1}" for level in range(4)]
    return [
        _into_upcat(network, name, _channels_out(stage), guided) for name, stage in zip(blocks, encoder, strict=True)
    ]


def _monai_basic_unet_plus_plus(network: Any, guided: bool) -> list[Skip]:
    # the encoder's features X(i, 0) where they enter the last node of their level, X(i, 4 - i), beside those of the
    # nodes between: these four are the decoder of the U-Net that is left when the nodes between are taken out
    encoder = [network.conv_0_0, network.conv_1_0, network.conv_2_0, network.conv_3_0]
    return [
        _into_upcat(network, f"upcat_{level}_{4 - level}", _channels_out(stage), guided, nodes_between=3 - level)
        for level, stage in enumerate(encoder)
    ]


def _into_upcat(network: Any, name: str, channels: int, guided: bool, nodes_between: int = 0) -> Skip:
    """MONAI's UpCat takes (from below, skip), and its `convs` take the skip with the upsampled features behind it."""
    convs: Any = network.get_submodule(f"{name}.convs")
    convolution = convs.conv_0.conv
    kernel = (3,) * (convolution.weight.dim() - 2)
    if guided:
        others = convolution.in_channels - channels
        module, argument = f"{name}.convs", 0
    else:
        others = nodes_between * channels
        module, argument = name, 1
    return Skip(module=module, channels=channels, kernel_size=kernel, argument=argument, concatenated_with=others)


def _channels_out(stage: Any) -> int:
    convs = getattr(stage, "convs", stage)
    return int(convs.conv_1.conv.out_channels)


def _smp_unet(network: Any, guided: bool) -> list[Skip]:
    skips = []
    channels = list(network.encoder.out_channels)[1:-1]  # the input is no skip, the bottleneck neither
    for level, wide in enumerate(channels):
        if not wide:  # an encoder without features at this resolution
            continue
        name = f"decoder.blocks.{len(channels) - 1 - level}"
        if guided:
            others = network.get_submodule(f"{name}.conv1")[0].in_channels - wide
            together = {"argument": 0, "concatenated_with": others, "first": False}
            skips.append(Skip(module=f"{name}.attention1", channels=wide, kernel_size=(3, 3), **together))
        else:
            skips.append(Skip(module=name, channels=wide, kernel_size=(3, 3), argument="skip_connection"))
    return skips


def _ce_net(network: Any, guided: bool) -> list[Skip]:
    channels = [block[-2].num_features for block in network.decoder]
    return [Skip(module=f"skips.{level}", channels=wide, kernel_size=(3, 3)) for level, wide in enumerate(channels)]


def _per_axis(size: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (size,) * dimensions if isinstance(size, int) else tuple(size)


ADAPTERS: dict[str, Callable[[Any, bool], list[Skip]]] = {
    "monai.networks.nets.dynunet.DynUNet": _monai_dynunet,
    "monai.networks.nets.unet.UNet": _monai_unet,
    "monai.networks.nets.attentionunet.AttentionUnet": _monai_attention_unet,
    "monai.networks.nets.basic_unet.BasicUNet": _monai_basic_unet,
    "monai.networks.nets.basic_unetplusplus.BasicUNetPlusPlus": _monai_basic_unet_plus_plus,
    "segmentation_models_pytorch.decoders.unet.model.Unet": _smp_unet,
    "nnunet_godc.networks.from_monai.UNetPlusPlus": _monai_basic_unet_plus_plus,
    "nnunet_godc.networks.ce_net.CENet": _ce_net,
}
