"""The networks that the paper compares with (Table III) in nnU-Net's trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_godc.errors import UserError
from nnunet_godc.training.checkpoint import bare_network
from nnunet_godc.training.hyperparameters import HyperparametersMixin
from nnunet_godc.training.safe import SafeMixin

Strides = list[list[int]]  # per stage, per axis
INSTANCE_NORM = {f"{axes}d": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d" for axes in (2, 3)}


class NetworkMixin(SafeMixin, HyperparametersMixin):
    """Trains another network than the plans'. It follows from the trainer's name and the plans alone.

    Attributes:
        title: what the network is called in messages.
        needs: the package that it comes from, if that is an extra.
    """

    title: ClassVar[str]
    needs: ClassVar[str | None] = None

    @classmethod
    def make_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        """The network, with its weights initialised. For subclasses."""
        raise NotImplementedError

    @classmethod
    def total_stride(cls, configuration: ConfigurationManager) -> list[int]:
        """By how much the network reduces each axis of the patch. For subclasses."""
        raise NotImplementedError

    @classmethod
    def not_taken(cls, configuration: ConfigurationManager) -> list[str]:
        """What of the plans' network this one cannot take over, a sentence for each. For subclasses."""
        return []

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        _check_patch_size(cls, configuration_manager)
        if cls.needs is not None and find_spec(cls.needs) is None:
            raise UserError(
                f"{cls.title} comes from {cls.needs}, which is not installed: pip install 'nnunet-godc[comparison]'."
            )
        return cls.make_network(configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision)

    def initialize(self) -> None:
        super().initialize()
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        supervision = "with" if self.enable_deep_supervision else "without"
        self.print_to_log_file(f"Network: {self.title}, {parameters:,} parameters, {supervision} deep supervision.")
        for sentence in self.not_taken(self.configuration_manager):
            self.print_to_log_file(f"Network: {sentence}")


def _check_patch_size(trainer: type[NetworkMixin], configuration: ConfigurationManager) -> None:
    patch_size = list(configuration.patch_size)
    strides = trainer.total_stride(configuration)
    if all(extent % stride == 0 for extent, stride in zip(patch_size, strides, strict=True)):
        return
    pairs = list(zip(patch_size, strides, strict=True))
    smaller = [extent // stride * stride for extent, stride in pairs]
    larger = [math.ceil(extent / stride) * stride for extent, stride in pairs]
    those = f"{smaller} or {larger}" if all(smaller) else f"{larger}"
    raise UserError(
        f"{trainer.title} reduces the axes of a patch by {strides}, which do not divide the plans' patch size "
        f"{patch_size}; use plans with a patch size such as {those}."
    )


def _plan(configuration: ConfigurationManager) -> dict[str, Any]:
    return dict(configuration.network_arch_init_kwargs)


def _product(strides: Strides) -> list[int]:
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


class _PublishedUNet(NetworkMixin):
    """nnU-Net's own U-Nets with other widths, from the finest level; depth, strides and kernels follow the plans."""

    network_class: ClassVar[str]
    per_stage: ClassVar[dict[str, int]]  # blocks or convolutions in each stage of the encoder
    widths: ClassVar[tuple[int, ...]]

    @classmethod
    def stages(cls, configuration: ConfigurationManager) -> int:
        return min(len(cls.widths), int(_plan(configuration)["n_stages"]))

    @classmethod
    def strides(cls, configuration: ConfigurationManager) -> Strides:
        return [list(stride) for stride in _plan(configuration)["strides"][: cls.stages(configuration)]]

    @classmethod
    def total_stride(cls, configuration: ConfigurationManager) -> list[int]:
        return _product(cls.strides(configuration))

    @classmethod
    def make_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        plan, stages = _plan(configuration), cls.stages(configuration)
        axes = len(configuration.patch_size)
        network: nn.Module = get_network_from_plans(
            f"dynamic_network_architectures.architectures.unet.{cls.network_class}",
            {
                "n_stages": stages,
                "features_per_stage": list(cls.widths[:stages]),
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": plan["kernel_sizes"][:stages],
                "strides": cls.strides(configuration),
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": INSTANCE_NORM[f"{axes}d"],
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.ReLU",
                "nonlin_kwargs": {"inplace": True},
            }
            | {name: [number] * stages for name, number in cls.per_stage.items()},
            ["conv_op", "norm_op", "dropout_op", "nonlin"],
            input_channels,
            num_classes,
            allow_init=True,
            deep_supervision=deep_supervision,
        )
        return network

    @classmethod
    def not_taken(cls, configuration: ConfigurationManager) -> list[str]:
        planned, stages = _plan(configuration), cls.stages(configuration)
        sentences = [f"widths are those published, {list(cls.widths[:stages])}, not {planned['features_per_stage']}."]
        if stages != planned["n_stages"]:
            sentences.append(f"{stages} stages, as published, of the {planned['n_stages']} of the plans.")
        return sentences

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        # as nnU-Net has it, but for the stages that there are
        if not self.enable_deep_supervision:
            return None
        scales: list[list[float]] = (1 / np.cumprod(self.strides(self.configuration_manager), axis=0))[:-1].tolist()
        return scales


class UNetMixin(_PublishedUNet):
    """Trains the U-Net as published (Ronneberger et al. 2015): 64 to 1024 features, two convolutions and ReLU a stage.

    What differs is what nnU-Net's plain U-Net has and the paper has not: instance normalisation, padding, strided
    convolutions in the place of max pooling, deep supervision, and the strides and kernels of the plans.
    """

    title = "U-Net as published"
    network_class = "PlainConvUNet"
    per_stage: ClassVar = {"n_conv_per_stage": 2}
    widths = (64, 128, 256, 512, 1024)


class ResUNetMixin(_PublishedUNet):
    """Trains a residual U-Net with the widths of Zhang et al. (2018): 64 to 512 features, one residual block a stage.

    It is nnU-Net's residual encoder U-Net, whose decoder is plain. The network that Table III of the paper cites (Han
    2017) is described without its widths.
    """

    title = "ResUNet"
    network_class = "ResidualEncoderUNet"
    per_stage: ClassVar = {"n_blocks_per_stage": 1}
    widths = (64, 128, 256, 512)


class _ForeignNetwork(NetworkMixin):
    """A network that is not nnU-Net's own. Its weights start as nnU-Net's do.

    It is trained with deep supervision if it gives several outputs, and as with nnU-Net's own
    nnUNetTrainerNoDeepSupervision if it does not.

    Attributes:
        supervised_outputs: how many outputs of the size of the patch it gives for deep supervision; 0 for none.
    """

    supervised_outputs: ClassVar[int] = 0

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        if not self.supervised_outputs:
            self.enable_deep_supervision = False

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        return [[1.0] * len(self.configuration_manager.patch_size)] * self.supervised_outputs

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        if self.supervised_outputs:
            network: Any = bare_network(self.network)
            network.deep_supervision = enabled


class UNetPlusPlusMixin(_ForeignNetwork):
    """Trains U-Net++ (Zhou et al. 2018), MONAI's, with the widths and strides of the plans.

    It has five levels: of plans with more, the first five count; levels that plans lack reduce nothing. Deep
    supervision weighs the four nodes of the finest level as nnU-Net weighs its resolutions, the last node most and the
    first not at all; each has the size of the patch.
    """

    title = "U-Net++"
    needs = "monai"
    supervised_outputs = 4
    LEVELS: ClassVar = 5

    @classmethod
    def strides(cls, configuration: ConfigurationManager) -> Strides:
        planned = [list(stride) for stride in _plan(configuration)["strides"][1 : cls.LEVELS]]
        missing = cls.LEVELS - 1 - len(planned)
        return planned + [[1] * len(configuration.patch_size)] * missing

    @classmethod
    def total_stride(cls, configuration: ConfigurationManager) -> list[int]:
        return _product(cls.strides(configuration))

    @classmethod
    def make_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        from nnunet_godc.networks.from_monai import UNetPlusPlus

        planned = list(_plan(configuration)["features_per_stage"][: cls.LEVELS])
        widths = planned + planned[-1:] * (cls.LEVELS - len(planned))
        network = UNetPlusPlus(input_channels, num_classes, widths, cls.strides(configuration), deep_supervision)
        return network.apply(InitWeights_He(1e-2))

    @classmethod
    def not_taken(cls, configuration: ConfigurationManager) -> list[str]:
        sentences = _kernels_not_taken(configuration, 3)
        stages = _plan(configuration)["n_stages"]
        if stages > cls.LEVELS:
            sentences.append(f"five levels, as U-Net++ has them, of the {stages} of the plans.")
        if stages < cls.LEVELS:
            sentences.append(f"U-Net++ has five levels, the plans {stages}: the others reduce nothing.")
        return sentences


class AttentionUNetMixin(_ForeignNetwork):
    """Trains Attention U-Net (Oktay et al. 2018), MONAI's, with the widths and strides of the plans.

    Instance normalisation stands in the place of its batch normalisation. It has one output, hence no deep supervision.
    """

    title = "Attention U-Net"
    needs = "monai"

    @classmethod
    def total_stride(cls, configuration: ConfigurationManager) -> list[int]:
        return _product([list(stride) for stride in _plan(configuration)["strides"][1:]])

    @classmethod
    def make_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        from nnunet_godc.networks.from_monai import attention_unet

        plan = _plan(configuration)
        network = attention_unet(input_channels, num_classes, plan["features_per_stage"], plan["strides"][1:])
        return network.apply(InitWeights_He(1e-2))

    @classmethod
    def not_taken(cls, configuration: ConfigurationManager) -> list[str]:
        return _kernels_not_taken(configuration, 3)


def _kernels_not_taken(configuration: ConfigurationManager, size: int) -> list[str]:
    other = [kernel for kernel in _plan(configuration)["kernel_sizes"] if list(kernel) != [size] * len(kernel)]
    if not other:
        return []
    return [f"kernels are {size} along every axis, where the plans have {_listed(other)} in {len(other)} stages."]


def _listed(kernels: Sequence[Sequence[int]]) -> str:
    return " and ".join(sorted({"x".join(map(str, kernel)) for kernel in kernels}))


class CENetMixin(_ForeignNetwork):
    """Trains CE-Net (Gu et al. 2019), in 2D: a ResNet-34 encoder, dense atrous convolution, multi-kernel pooling.

    The encoder starts from ImageNet's weights, as published, if torchvision's file of them is in PyTorch's cache;
    nothing is downloaded. Of the plans' network, nothing is taken over. Batch normalisation is kept, since the
    encoder's weights rely on it: 2d plans have batches that are large enough.
    """

    title = "CE-Net"

    @classmethod
    def total_stride(cls, configuration: ConfigurationManager) -> list[int]:
        from nnunet_godc.networks.ce_net import DIVISOR

        axes = len(configuration.patch_size)
        if axes != 2:
            raise UserError(f"CE-Net is a 2D network, and this configuration has {axes} axes; train it with 2d.")
        return [DIVISOR] * axes

    @classmethod
    def make_network(
        cls, configuration: ConfigurationManager, input_channels: int, num_classes: int, deep_supervision: bool
    ) -> nn.Module:
        from nnunet_godc.networks.ce_net import CENet

        return CENet(input_channels, num_classes).apply(InitWeights_He(1e-2))

    @classmethod
    def not_taken(cls, configuration: ConfigurationManager) -> list[str]:
        return ["widths, strides and kernels are those of ResNet-34, not the plans'."]

    def initialize(self) -> None:
        super().initialize()
        file = imagenet_weights()
        if file.is_file():
            network: Any = bare_network(self.network)
            network.load_encoder(torch.load(file, map_location="cpu", weights_only=True))
            self.print_to_log_file(f"Network: the encoder starts from ImageNet's weights, {file}.")
        else:
            self.print_to_log_file(f"Network: the encoder starts at random, since there is no {file}.")


def imagenet_weights() -> Path:
    """Where PyTorch keeps torchvision's weights of a ResNet-34 once they have been downloaded."""
    from torchvision.models import ResNet34_Weights

    name = ResNet34_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    return Path(torch.hub.get_dir(), "checkpoints", name)
