"""LFAM in nnU-Net's trainer."""

from __future__ import annotations

from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer

from nnunet_godc.alignment import AlignedUNetDecoder, LFAMConfig, align_skips, alignment_of
from nnunet_godc.training.checkpoint import bare_network
from nnunet_godc.training.safe import SafeMixin


class LFAMMixin(SafeMixin):
    """Trains the network with LFAM on its skip connections.

    Attributes:
        lfam: the options; a subclass sets its own.
    """

    lfam: ClassVar[LFAMConfig] = LFAMConfig()

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return align_skips(network, cls.lfam)

    def initialize(self) -> None:
        super().initialize()
        if self.local_rank != 0:
            return
        network: Any = bare_network(self.network)
        alignment = alignment_of(network)
        levels = [
            f"level {level} ({alignment.channels[int(level)]} channels, "
            f"taps {'x'.join(map(str, alignment.kernels[level]))})"
            for level in alignment.levels
        ]
        adds = [f"{sum(parameter.numel() for parameter in alignment.parameters()):,} parameters"]
        if isinstance(getattr(network, "decoder", None), AlignedUNetDecoder):
            patch_size = self.configuration_manager.patch_size
            elements = int(network.decoder.alignment_feature_map_size(patch_size)) * self.batch_size
            bytes_each = 2 if self.device.type == "cuda" else 4
            megabytes = elements * bytes_each / 2**20
            adds.append(f"{megabytes:,.0f} MB of feature maps for a batch of {self.batch_size}")
        self.print_to_log_file(
            f"LFAM on {len(levels)} skip connections, {self.lfam}: {', '.join(levels)}. It adds {' and '.join(adds)}."
        )

    def configure_optimizers(self) -> tuple[Optimizer, Any]:
        optimizer, scheduler = super().configure_optimizers()
        if self.lfam.offset_lr_factor != 1:
            offsets = list(alignment_of(bare_network(self.network)).offset_parameters())
            identities = {id(parameter) for parameter in offsets}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in identities]
            options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
            optimizer.add_param_group({**options, "params": offsets, "lr_factor": self.lfam.offset_lr_factor})
        return optimizer, scheduler

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # nnU-Net's schedulers have just set one learning rate for all groups
        for group in self.optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
