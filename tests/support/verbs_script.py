"""A script that uses every verb, which the type checker reads and a test runs."""

from __future__ import annotations

from diffusers import DiffusionPipeline

import dit_accel
from dit_accel import AttentionReport, Guard, HeadSet, Profile, Rule, Schedule, SVGEar


def render_with_every_verb(pipe: DiffusionPipeline) -> AttentionReport:
    """Enable, use and disable everything on a pipeline."""
    schedule = Schedule(dense_steps=0.1, min_tokens=0, rules=(Rule(layers="0", dense=True),))
    session = dit_accel.enable_sparse_attention(
        pipe, SVGEar(density=0.2), schedule=schedule, guard=Guard("warn")
    )
    profile: Profile = session.profile
    with (
        dit_accel.enable_quantized_attention(pipe, "int8"),
        dit_accel.enable_perturbed_guidance(pipe, scale=2.0, softness=0.5) as guidance,
    ):
        heads: HeadSet = guidance.heads
        report = dit_accel.attention_report(pipe)
    dit_accel.disable_perturbed_guidance(pipe)
    dit_accel.disable_quantized_attention(pipe)
    dit_accel.disable_sparse_attention(pipe)
    assert profile.method.name == "svg-ear"
    assert heads.model.heads > 0
    return report
