"""Measurements of segmentations, and what can be said from them: `evaluate` does the whole."""

from nnunet_godc.evaluation.evaluate import Evaluation, evaluate
from nnunet_godc.evaluation.lesions import LesionRule
from nnunet_godc.evaluation.table import read_tables

__all__ = ["Evaluation", "LesionRule", "evaluate", "read_tables"]
