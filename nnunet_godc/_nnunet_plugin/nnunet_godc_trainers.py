"""What nnU-Net reads when it looks for a trainer: every class of `nnunet_godc.trainers`, under its one identity."""

from nnunet_godc.trainers import *  # noqa: F403
