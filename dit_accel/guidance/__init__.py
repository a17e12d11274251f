"""Perturbed-attention guidance: PAG, SoftPAG and HeadHunter's head sets on ordinary pipelines."""

from dit_accel.guidance.config import PerturbedGuidance, check_family
from dit_accel.guidance.heads import HeadSet, ModelShape, all_heads, find_heads, parse_heads

__all__ = [
    "HeadSet",
    "ModelShape",
    "PerturbedGuidance",
    "all_heads",
    "check_family",
    "find_heads",
    "parse_heads",
]
