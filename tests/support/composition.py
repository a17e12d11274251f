"""What sparse attention has to get along with, feature by feature, on tiny random Wan pipelines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from torch import Tensor, nn

from dit_accel import (
    SVG,
    SVG2,
    Band,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    RasterWindow,
    ReTtention,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)

METHODS: dict[str, Method] = {
    "svg2": SVG2(top_p=1.0),
    "svg-ear": SVGEar(key_clusters=10**6, density=0.3),
    "re-ttention merge": ReTtention(density=1.0, mode="merge"),
    "re-ttention paper": ReTtention(density=1.0, mode="paper", lam=0.0),
    "svg": SVG(density=1.0, block=16),
    "xattention": XAttention(threshold=1.0, block=16, stride=4),
    "permuted-blocks": PermutedBlocks(top_p=1.0, block=16),
    "sparge-attn": SpargeAttn(cdf_threshold=1.0, query_block=16, key_block=8, order="hilbert"),
    "topk-blocks": TopKBlocks(density=1.0, tile=(2, 2, 2)),
    "neighborhood": Neighborhood(density=1.0),
    "radial": Radial(decay=1e6, block=1),
    "band": Band(density=1.0),
    "raster-window": RasterWindow(window=2.0),
}
PRECISIONS = {"full": 1e-4, "int8": 0.03, "int8-fp8": 0.1}  # largest relative error of the latents
GUIDANCE = ("separate", "batched", "none")
BATCHES = ("1", "2 prompts", "2 videos")


def lora(pipe: WanPipeline) -> None:
    config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)


def scaled_lora(pipe: WanPipeline) -> None:
    lora(pipe)
    pipe.transformer.set_adapters(["default"], [0.5])


def fused_lora(pipe: WanPipeline) -> None:
    lora(pipe)
    pipe.transformer.fuse_lora()


def taylor_seer(pipe: WanPipeline) -> None:
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=1,
            cache_identifiers=[r"blocks\.\d+\.attn1"],  # its own pattern matches none of Wan's
        )
    )


def mag_cache(pipe: WanPipeline) -> None:
    config = MagCacheConfig(
        threshold=0.5,
        num_inference_steps=4,
        retention_ratio=0.25,
        mag_ratios=torch.full((4,), 0.99),
    )
    pipe.transformer.enable_cache(config)


def broadcast(pipe: WanPipeline) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    pipe.transformer.enable_cache(config)


def group_offload(pipe: WanPipeline) -> None:
    options = {"offload_type": "block_level", "num_blocks_per_group": 1}
    apply_group_offloading(pipe.transformer, onload_device=torch.device("cpu"), **options)


def torchao_linears(pipe: WanPipeline) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def in_blocks(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.startswith("blocks")

    quantize_(pipe.transformer, Int8WeightOnlyConfig(), filter_fn=in_blocks)


def plain(_: WanPipeline) -> None:
    """Nothing; two transformers are made by who builds the pipeline."""


FEATURES: dict[str, Callable[[WanPipeline], object]] = {
    "plain": plain,
    "FirstBlockCache": lambda pipe: pipe.transformer.enable_cache(
        FirstBlockCacheConfig(threshold=10.0)
    ),
    "MagCache": mag_cache,
    "TaylorSeer": taylor_seer,
    "PyramidAttentionBroadcast": broadcast,
    "LoRA": lora,
    "LoRA scaled": scaled_lora,
    "LoRA fused": fused_lora,
    "fused QKV": lambda pipe: pipe.transformer.fuse_qkv_projections(),
    "compiled blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(
        backend="aot_eager", fullgraph=True
    ),
    "group offload": group_offload,
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "torchao linears": torchao_linears,
    "two transformers": plain,
}

# Levers of a profile, at settings that skip nothing.
LEVERS: dict[str, dict[str, dict[str, object]]] = {
    "cache": {"cache": {"kind": "first-block", "threshold": 0.0}},
    "linears": {"linears": {"kind": "int8-weights"}},
    "compile": {"compile": {"backend": "aot_eager"}},
}
CACHES = ("FirstBlockCache", "MagCache", "TaylorSeer", "PyramidAttentionBroadcast")
REFUSED_LEVERS = {
    **{("cache", feature): "has a cache already" for feature in CACHES},
    ("cache", "compiled blocks"): "a cache cannot decide inside their graphs",
    ("linears", "group offload"): "enable acceleration first, then offload",
    ("linears", "torchao linears"): "linears are quantized already",
    ("compile", "compiled blocks"): "are compiled already",
    ("compile", "layerwise casting"): "which torch.compile cannot follow",
}


@dataclass(frozen=True)
class Case:
    """One combination."""

    method: str
    precision: str
    guidance: str
    batch: str
    feature: str
    lever: str = "none"

    def __str__(self) -> str:
        return ", ".join(vars(self).values())


AXES = {
    "method": tuple(METHODS),
    "precision": tuple(PRECISIONS),
    "guidance": GUIDANCE,
    "batch": BATCHES,
    "feature": tuple(FEATURES),
    "lever": ("none", *LEVERS),
}


def every() -> Iterator[Case]:
    """The full product without levers."""
    axes = [values for name, values in AXES.items() if name != "lever"]
    return (Case(*values) for values in itertools.product(*axes))


def with_levers() -> list[Case]:
    """Cases in which every lever meets every value of the other axes once at least."""
    axes = [AXES[name] for name in ("method", "precision", "guidance", "batch", "feature")]
    count = max(map(len, axes))
    rows = [[values[i % len(values)] for values in axes] for i in range(count)]
    return [Case(*row, lever) for lever in LEVERS for row in rows]


def pairwise() -> list[Case]:
    """A few of the cases such that every pair of values of two axes occurs: greedily, always the case with
    the most pairs that did not occur yet.
    """

    def pairs(case: Case) -> set[tuple[tuple[str, str], ...]]:
        return set(itertools.combinations(vars(case).items(), 2))

    open_pairs = {pair for case in every() for pair in pairs(case)}
    cases = [(case, pairs(case)) for case in every()]
    chosen = []
    while open_pairs:
        best, covered = max(cases, key=lambda item: len(item[1] & open_pairs))
        chosen.append(best)
        open_pairs -= covered
    return chosen


def render(pipe: WanPipeline, case: Case) -> Tensor:
    """Latents of 4 steps at 96 tokens."""
    if case.guidance == "batched":
        return guided_in_one_batch(pipe, case)
    return pipe(
        ["a red circle", "a blue square"][: 2 if case.batch == "2 prompts" else 1],
        height=64,
        width=64,
        num_frames=21,
        num_inference_steps=4,
        guidance_scale=1.0 if case.guidance == "none" else 4.0,
        num_videos_per_prompt=2 if case.batch == "2 videos" else 1,
        max_sequence_length=16,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames


@torch.no_grad()
def guided_in_one_batch(pipe: WanPipeline, case: Case) -> Tensor:
    """The loop of pipelines that run both halves of the guidance as one batch."""
    prompts = ["a red circle", "a blue square"] if case.batch == "2 prompts" else ["a red circle"]
    videos = 2 if case.batch == "2 videos" else 1
    cond, uncond = pipe.encode_prompt(
        prompts, num_videos_per_prompt=videos, max_sequence_length=16, device="cpu"
    )
    text = torch.cat([uncond, cond])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(cond), 8, 6, 8, 8, generator=generator)
    pipe.scheduler.set_timesteps(4)
    for index, timestep in enumerate(pipe.scheduler.timesteps):
        pipe._current_timestep = timestep
        high = pipe.transformer_2 is None or timestep >= 900
        model = pipe.transformer if high else pipe.transformer_2
        with model.cache_context("cond_uncond", step_index=index, num_inference_steps=4):
            both = model(
                torch.cat([latents, latents]), timestep.expand(len(text)), text, return_dict=False
            )[0]
        negative, positive = both.chunk(2)
        guided = negative + 4.0 * (positive - negative)
        latents = pipe.scheduler.step(guided, timestep, latents, return_dict=False)[0]
    pipe.maybe_free_model_hooks()
    return latents


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


REFUSED = {
    "guard 'on' with a diffusers cache": "the cache would count the second forward as a step: "
    "use guard 'warn'",
    "a transformer wrapped by torch.compile": "enable first, or compile its repeated blocks",
    "perturbed guidance or guard 'on' under context parallelism": "each device has some heads or tokens only: "
    "use guard 'warn'",
    "ring attention": "a plan needs all keys: use ulysses_degree",
    "perturbed guidance with PyramidAttentionBroadcast": "it keeps one state for all branches of a step",
    "model offload on a CPU": "diffusers itself needs an accelerator for it",
    "perturbed guidance, guard 'on' or a cache of the profile with cache-dit": "it counts forwards",
    **{
        f"{lever} of a profile after {feature}": why
        for (lever, feature), why in REFUSED_LEVERS.items()
    },
}


def document(outcomes: Mapping[Case, str]) -> list[str]:
    """The matrix as Markdown: two axes at a time."""
    possible = len(with_levers()) + sum(1 for _ in every())
    lines = [
        "# What was run together",
        "",
        f"{len(outcomes)} of {possible} combinations, on tiny random Wan pipelines on a CPU; "
        "a cell has passed/run. Passed: at full selection the pipeline renders what it renders without us, "
        "a second run is the same, and after `disable` it is bit for bit itself again. "
        "The mask of `re-ttention` is `neighborhood`. A lever of `enable_acceleration` passed: with the method at "
        "full selection the pipeline renders what it renders with the lever alone, and after `disable` it is itself.",
    ]
    for rows, columns in (("feature", "method"), ("feature", "precision"), ("feature", "guidance")):
        lines += ["", *table(outcomes, rows, columns)]
    for rows, columns in (("method", "precision"), ("method", "guidance"), ("method", "batch")):
        lines += ["", *table(outcomes, rows, columns)]
    for rows in ("method", "feature", "guidance"):
        lines += ["", *table(outcomes, rows, "lever")]
    lines += ["", "Refused, with the reason in the error:"]
    return [*lines, *(f"- {what}: {why}" for what, why in REFUSED.items())]


def table(outcomes: Mapping[Case, str], rows: str, columns: str) -> Sequence[str]:
    """One Markdown table: for each pair of values how many cases passed of how many that ran."""
    lines = [f"| {rows} | " + " | ".join(AXES[columns]) + " |"]
    lines.append("|---" * (len(AXES[columns]) + 1) + "|")
    for row in AXES[rows]:
        cells = []
        for column in AXES[columns]:
            wanted = {rows: row, columns: column}.items()
            own = [o for case, o in outcomes.items() if wanted <= vars(case).items()]
            ran = [outcome for outcome in own if outcome != "refused"]
            cells.append(f"{ran.count('passed')}/{len(ran)}" if ran else "refused" if own else "-")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines
