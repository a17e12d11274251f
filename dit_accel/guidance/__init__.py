"""Perturbed-attention guidance (PAG, SoftPAG and HeadHunter's head sets) on ordinary pipelines.

This package imports neither torch nor diffusers: import `PerturbedBranch` from its own module.
"""

from dit_accel.guidance.config import PerturbedGuidance, check_family
from dit_accel.guidance.heads import (
    HeadSet,
    ModelShape,
    make_head_set,
    parse_heads,
    select_all_heads,
)

__all__ = [
    "HeadSet",
    "ModelShape",
    "PerturbedGuidance",
    "check_family",
    "make_head_set",
    "parse_heads",
    "select_all_heads",
]
