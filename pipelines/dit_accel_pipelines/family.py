"""Describe a model family: its attention modules, its tokens and its pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dit_accel_pipelines.sizes import SizeRule
from dit_accel_pipelines.token_layout import Config, TokenLayout

if TYPE_CHECKING:
    from torch import nn

CHUNKED = "Long videos are generated in chunks, each as a run of its own; the report covers the last chunk"
MODULAR = "Use dit_accel.enable_sparse_attention(pipe), because diffusers has only modular pipelines for it"

COMPONENTS = ("transformer", "transformer_2", "unconditional_transformer")
"""Names of the transformers in a pipeline: one for all steps, or one per step range or prediction."""

CFG_STYLES = ("separate", "batched", "embedded")
RENAMED_CFG_STYLES = {"two calls": "separate", "one batch": "batched"}


@dataclass(frozen=True)
class AttentionShape:
    """Size of a transformer's self-attention.

    Attributes:
        layers: Number of self-attention modules.
        heads: Number of heads.
        head_dim: Number of channels per head.
    """

    layers: int
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Postprocess:
    """Change that pipelines make to predictions after classifier-free guidance.

    Attributes:
        description: What happens, as a continuation of "the pipeline ...".
        switch: Argument of the call, or entry of the pipeline's config, that turns it on; empty if it is always on.
        default: Value for pipelines that have no such argument or entry.
    """

    description: str
    switch: str = ""
    default: bool = True


def standard_heads(transformer: Config) -> tuple[int, int]:
    """Return the number of heads and head_dim from the config keys that most models of diffusers use."""
    return transformer["num_attention_heads"], transformer["attention_head_dim"]


def heads_of_hidden_size(transformer: Config) -> tuple[int, int]:
    """Return the number of heads and head_dim from the keys num_attention_heads and hidden_size."""
    heads = transformer["num_attention_heads"]
    return heads, transformer["hidden_size"] // heads


def heads_of_dim(transformer: Config) -> tuple[int, int]:
    """Return the number of heads and head_dim from the keys n_heads and dim."""
    heads = transformer["n_heads"]
    return heads, transformer["dim"] // heads


def zero(transformer: Config) -> int:
    """Return 0: no text among the tokens, or no second attention in a block."""
    return 0


@dataclass(frozen=True)
class Family:
    r"""Everything dit_accel needs to know about a kind of transformer.

    Functions take configs as plain JSON, so one family covers checkpoints of all sizes.

    Attributes:
        name: Short name in tables and reports.
        transformers: Exact class names of the transformers.
        attention: Regular expression for the full module names of the self-attention over visual tokens.
        blocks: Block lists that contain these modules, in the order of execution. Each name maps to the config key
            of the list's length, or of another list of that length.
        layout: Function from the forward's arguments (by name) and the transformer's config to the TokenLayout.
            None means that the grid is unknown: calls stay dense if ``joint``, otherwise all tokens form one line.
        size_rule: Function from the configs of the transformer and the VAE to the valid sizes.
        cfg: How pipelines run classifier-free guidance. ``"separate"``: one forward per prediction;
            ``"batched"``: one forward of ``[uncond, cond]``; ``"embedded"``: the scale is an input of the model.
        text_tokens: Function from the transformer's config to the number of text tokens among the others, with the
            pipeline's default padding.
        text_first: Text tokens come before visual tokens.
        heads: Function from the transformer's config to the number of heads and head_dim.
        batch_arguments: Names of the forward's arguments whose first dimension is the batch.
        joint: Text tokens take part in the self-attention.
        variable_text: The number of text tokens differs between calls: all tokens beyond the grid are text.
        extra_attention_layers: Function from the transformer's config to the number of self-attention modules beyond
            one per block.
        output: What the pipelines make.
        image_pipelines: Class names of the pipelines that make images, if the others make videos.
        guidance: Perturbed guidance supports this family.
        skip_connections: Later blocks also take the outputs of earlier blocks.
        linear: Self-attention is linear. It has no map, so only perturbed guidance supports it.
        postprocess: Changes to predictions that also affect what perturbed guidance adds.
        context_parallel_error: Why pipelines fail under diffusers' context parallelism although diffusers has a plan
            for them; empty if they work.
        status: ``"tested"`` if sparse attention passed the family matrix, otherwise ``"declared"``.
        remark: Sentences on what stays dense, for the table of families, without the last full stop.

    Raises:
        ValueError: if ``cfg`` is not one of the three styles.

    Example:
        >>> MY_VIDEO = Family(
        ...     name="my-video",
        ...     transformers=("MyVideoTransformer3DModel",),
        ...     attention=r"blocks\.\d+\.attn1",
        ...     blocks={"blocks": "num_layers"},
        ...     layout=latent_layout,
        ...     size_rule=lambda transformer, vae: SizeRule(multiple=16, frame_step=4),
        ...     cfg="separate",
        ... )
        >>> register_family(MY_VIDEO)
    """

    name: str
    transformers: tuple[str, ...]
    attention: str
    blocks: Mapping[str, str]
    layout: Callable[[Mapping[str, Any], Config], TokenLayout | None]
    size_rule: Callable[[Config, Config], SizeRule]
    cfg: Literal["separate", "batched", "embedded"]
    text_tokens: Callable[[Config], int] = zero
    text_first: bool = False
    heads: Callable[[Config], tuple[int, int]] = standard_heads
    batch_arguments: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "timestep")
    joint: bool = False
    variable_text: bool = False
    extra_attention_layers: Callable[[Config], int] = zero
    output: Literal["video", "image"] = "video"
    image_pipelines: tuple[str, ...] = ()
    guidance: bool = True
    skip_connections: bool = False
    linear: bool = False
    postprocess: tuple[Postprocess, ...] = ()
    context_parallel_error: str = ""
    status: Literal["tested", "declared"] = "tested"
    remark: str = ""

    def __post_init__(self) -> None:
        if self.cfg in CFG_STYLES:
            return
        renamed = RENAMED_CFG_STYLES.get(self.cfg)
        advice = f": it is now {renamed!r}" if renamed else ""
        raise ValueError(
            f"cfg of family {self.name!r} must be one of {', '.join(CFG_STYLES)}, got {self.cfg!r}{advice}"
        )

    def block_counts(self, transformer: Config) -> dict[str, int]:
        """Return the number of blocks in each block list, from the transformer's config."""
        lengths = {block_list: transformer[key] for block_list, key in self.blocks.items()}
        return {name: n if isinstance(n, int) else len(n) for name, n in lengths.items()}

    def attention_shape(self, transformer: Config) -> AttentionShape:
        """Return the size of the self-attention, from the transformer's config."""
        blocks = sum(self.block_counts(transformer).values())
        layers = blocks + self.extra_attention_layers(transformer)
        return AttentionShape(layers, *self.heads(transformer))

    def video_layout(
        self, frames: int, height: int, width: int, transformer: Config, vae: Config
    ) -> TokenLayout:
        """Return the layout of a video in pixels with the pipeline's default text, from the two configs."""
        grid = self.size_rule(transformer, vae).grid(frames, height, width)
        return replace(grid, text_tokens=self.text_tokens(transformer), text_first=self.text_first)

    def attention_modules(self, transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield the name and the module of each self-attention over visual tokens, in the order of execution."""
        pattern = re.compile(self.attention)
        for block_list in self.blocks:
            modules = transformer.get_submodule(block_list).named_modules(prefix=block_list)
            for name, module in modules:
                if pattern.fullmatch(name):
                    yield name, module
