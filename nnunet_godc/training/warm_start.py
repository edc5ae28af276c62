"""Starting a variant from a checkpoint of plain nnU-Net."""

from __future__ import annotations

from pathlib import Path

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.training.checkpoint import is_of_alignment, read_checkpoint

# What prediction needs beside the weights. The optimiser's state does not fit the new weights and is left out.
_KEPT = ("init_args", "inference_allowed_mirroring_axes")


def warm_start(stock: Path, out: Path, trainer_name: str) -> int:
    """Writes a checkpoint of `trainer_name` that computes what the stock checkpoint computes.

    LFAM starts as the identity, so only its own weights have to be added. The result serves nnU-Net's
    `-pretrained_weights`, which demands every weight of the network.

    Args:
        stock: checkpoint of a trainer with the plans' own network.
        out: file to write; must not exist.
        trainer_name: a trainer that nnU-Net finds.

    Returns:
        The number of weights (tensors) that were added.

    Raises:
        UserError: if a file is unsuitable, the trainer is not found, or the weights belong to another network.
    """
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten; give another name.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: there is no such folder to write {out.name} to; create it first.")
    checkpoint = read_checkpoint(stock)
    try:
        trainer = recursive_find_trainer_class_by_name(trainer_name)
    except RuntimeError:
        raise UserError(f"nnU-Net finds no trainer called {trainer_name}; check the name given with -tr.") from None

    arguments = checkpoint["init_args"]
    plans = PlansManager(arguments["plans"])
    configuration = plans.get_configuration(arguments["configuration"])
    dataset = arguments["dataset_json"]
    network = trainer.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=True,
    )
    try:
        result = network.load_state_dict(checkpoint["network_weights"], strict=False)
    except RuntimeError as error:
        raise UserError(f"{stock}: its weights do not have the shapes of {trainer_name}'s network: {error}") from error
    foreign = [name for name in result.missing_keys if not is_of_alignment(name)] + result.unexpected_keys
    if foreign:
        raise UserError(
            f"{stock} was trained by {checkpoint['trainer_name']}, and {trainer_name} has another network "
            f"({len(foreign)} weights differ, such as {foreign[0]}); give a checkpoint of plain nnU-Net."
        )

    warm = {name: checkpoint[name] for name in _KEPT if name in checkpoint}
    warm |= {"network_weights": network.state_dict(), "trainer_name": trainer_name}
    with atomic_write(out) as partial:
        torch.save(warm, partial)
    return len(result.missing_keys)
