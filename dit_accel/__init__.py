"""Make diffusers' video and image DiT pipelines faster, with one line, and say honestly what it
cost in quality.

Importing this package gives every ``DiffusionPipeline`` the verbs ``enable_sparse_attention``,
``enable_quantized_attention``, ``enable_perturbed_guidance``, their inverses and ``attention_report``; they
are functions here, too.
"""

from dit_accel.call import AttentionCall, Plan
from dit_accel.config import Guard, Rule, Schedule
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.methods import (
    METHODS,
    SVG,
    SVG2,
    Band,
    Dense,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    ReTtention,
    SVGEar,
    XAttention,
)
from dit_accel.profile import Profile
from dit_accel.report import AttentionReport
from dit_accel.session import Session
from dit_accel.verbs import (
    Guided,
    add_verbs,
    attention_report,
    disable_perturbed_guidance,
    disable_quantized_attention,
    disable_sparse_attention,
    enable_perturbed_guidance,
    enable_quantized_attention,
    enable_sparse_attention,
)

add_verbs()

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "SVG",
    "SVG2",
    "AttentionCall",
    "AttentionReport",
    "Band",
    "Dense",
    "Guard",
    "Guided",
    "HeadSet",
    "Method",
    "Neighborhood",
    "PermutedBlocks",
    "PerturbedGuidance",
    "Plan",
    "Profile",
    "Radial",
    "ReTtention",
    "Rule",
    "SVGEar",
    "Schedule",
    "Session",
    "XAttention",
    "attention_report",
    "disable_perturbed_guidance",
    "disable_quantized_attention",
    "disable_sparse_attention",
    "enable_perturbed_guidance",
    "enable_quantized_attention",
    "enable_sparse_attention",
]
