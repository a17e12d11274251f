"""Make diffusers' video and image DiT pipelines faster, with one line, and say honestly what it
cost in quality.

Importing this package gives every ``DiffusionPipeline`` the verbs ``enable_sparse_attention``,
``disable_sparse_attention`` and ``attention_report``; they are functions here, too.
"""

from dit_accel.call import AttentionCall, Plan
from dit_accel.config import Schedule
from dit_accel.methods import METHODS, SVG2, Dense, Method, SVGEar
from dit_accel.report import AttentionReport
from dit_accel.session import (
    Session,
    add_verbs,
    attention_report,
    disable_quantized_attention,
    disable_sparse_attention,
    enable_quantized_attention,
    enable_sparse_attention,
)

add_verbs()

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "SVG2",
    "AttentionCall",
    "AttentionReport",
    "Dense",
    "Method",
    "Plan",
    "SVGEar",
    "Schedule",
    "Session",
    "attention_report",
    "disable_quantized_attention",
    "disable_sparse_attention",
    "enable_quantized_attention",
    "enable_sparse_attention",
]
