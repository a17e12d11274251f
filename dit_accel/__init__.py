"""Make diffusers' video and image DiT pipelines faster, with one line, and say honestly what it
cost in quality.

Importing this package gives every ``DiffusionPipeline`` the verbs ``enable_sparse_attention``,
``enable_quantized_attention``, ``enable_perturbed_guidance``, their inverses and ``attention_report``; they
are functions here, too.
"""

from dit_accel.api import (
    GuidanceHandle,
    add_verbs,
    attention_report,
    disable_perturbed_guidance,
    disable_quantized_attention,
    disable_sparse_attention,
    enable_perturbed_guidance,
    enable_quantized_attention,
    enable_sparse_attention,
)
from dit_accel.core.attention_call import AttentionCall, Plan
from dit_accel.core.schedule import Guard, Rule, Schedule
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
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport
from dit_accel.runtime.session import Session

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
    "GuidanceHandle",
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
