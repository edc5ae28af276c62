"""What nnU-Net reads when it looks for a trainer: every class of `nnunet_godc.trainers`, under its one identity.

The start-up hook adds this folder to nnUNet_extTrainer. nnU-Net asks the module for the name that the user typed, so
a misspelt one can be answered here with the nearest that exists.
"""

try:
    from nnunet_godc.trainers import *  # noqa: F403
except ModuleNotFoundError as error:
    if error.name != "nnunet_godc":
        raise
    # nnUNet_extTrainer was inherited from a Python that has the package, and this one has not: a missing module by
    # this module's own name is what nnU-Net passes over in its search.
    raise ModuleNotFoundError("nnunet-godc is not installed in this Python", name=__name__) from None


def __getattr__(name: str) -> object:
    if "_seed" in name:
        from nnunet_godc.trainers import seeds

        if hasattr(seeds, name):
            return getattr(seeds, name)
        # its search for the name without the seed has come here, too
    elif name.lower().startswith("nnunettrainer"):
        from nnunet_godc.trainers import combinations

        if hasattr(combinations, name):
            return getattr(combinations, name)

        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nnunet_godc.spelling import names_of_subclasses, point_out_misspelling

        # nnU-Net's own trainers are among the candidates: its search has just imported and dismissed them all.
        point_out_misspelling(name, frozenset(names_of_subclasses(nnUNetTrainer)))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
