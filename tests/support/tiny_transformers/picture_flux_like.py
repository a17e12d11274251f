"""Ovis, LongCat, Bria, Ideogram, JoyImage, ERNIE."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ErnieImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from support.tiny_transformers.base import (
    BATCH,
    TEXT,
    Inputs,
    TinyTransformer,
    noise,
    padding,
    touch_latents,
    touch_tokens,
    touch_words,
)
from support.tiny_transformers.shared import (
    AXES,
    HEADS,
    ONE,
    TWO,
    UNPADDED,
    WORDS,
    CallContext,
    WithParameters,
    build,
    ids,
    latents,
    tokens,
    touch_first,
)
from torch import Tensor, nn

THREE = (3, 6, 8)


class WithoutText(TinyTransformer):
    """A row whose prediction is also of the text, which comes first and may be padding."""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        return super().run(transformer, inputs)[:, WORDS:]


def flux_like(
    family: str,
    make: Callable[..., nn.Module],
    inputs: Callable[[], Inputs],
    grid: CallContext,
    text: tuple[int, ...] = UNPADDED,
    **config: object,
) -> TinyTransformer:
    """One dual-stream block and one single-stream block."""
    size = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 16}
    made = build(make, axes_dims_rope=AXES, **size, **HEADS, **config)
    return TinyTransformer(family, made, inputs, touch_tokens(grid), grid, 2, text, touch_words)


def flux_inputs(grid: CallContext) -> Inputs:
    return {**tokens(grid), "img_ids": ids(grid), "txt_ids": torch.zeros(WORDS, 3)}


def fibo_inputs() -> Inputs:
    visible = torch.ones(BATCH, TWO[0] * TWO[1] * TWO[2], dtype=torch.bool)
    mask = torch.cat([padding(), visible], 1)[:, None, None]
    return {
        **flux_inputs(TWO),
        "text_encoder_layers": [noise(BATCH, WORDS, 16, seed=seed) for seed in (2, 3)],
        "joint_attention_kwargs": {"attention_mask": mask},
    }


GISTS = "perceiver.latent_queries"


def fibo2_inputs() -> Inputs:
    """Texts of 7 and 2 tokens, for which 4 and 3 stand."""
    return {
        **latents(),
        "encoder_hidden_states": noise(BATCH, 2, WORDS, 16, seed=1),
        "encoder_attention_mask": padding(WORDS, (WORDS, 2)),
        "context_latents": [noise(BATCH, 4, 2 * ONE[1], 2 * ONE[2], seed=2)],
        GISTS: noise(4, 32, seed=3),
    }


def fibo2_full() -> Inputs:
    """Texts of one length: what stands for them comes first."""
    return {**fibo2_inputs(), "encoder_attention_mask": padding(WORDS, UNPADDED)}


def touch_fibo2(inputs: Inputs, sample: int, place: CallContext) -> None:
    frame, row, column = place
    image = inputs["context_latents"][0] if frame else inputs["hidden_states"]
    image[sample, :, 2 * row, 2 * column] += 1


def touch_gist(inputs: Inputs, sample: int, token: int) -> None:
    inputs[GISTS][token] = -5 * inputs[GISTS][token]


def fibo2(inputs: Callable[[], Inputs], text: tuple[int, ...]) -> TinyTransformer:
    made = build(
        getattr(diffusers, "BriaFibo2Transformer2DModel", None),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=1,
        gist_min_text_len=1,
        gist_max_text_len=7,
        axes_dims=AXES,
        axes_lens=(64, 32, 32),
    )
    row = (made, inputs, touch_fibo2, TWO, 2, text, touch_gist)
    return WithParameters("bria-fibo-2", *row)


def ideogram4_inputs() -> Inputs:
    """Text is padded at its beginning."""
    image = torch.ones(BATCH, ONE[1] * ONE[2], dtype=torch.bool)
    segments = torch.cat([padding().flip(1), image], 1).long() * 2 - 1
    indicator = torch.where(segments > 0, 3, 0)
    indicator[:, WORDS:] = 2
    words = torch.arange(WORDS)[:, None].expand(-1, 3)
    positions = torch.cat([words, ids(ONE) + 65536])
    return {
        **tokens((1, 1, len(positions))),
        "encoder_hidden_states": noise(BATCH, len(positions), 16, seed=1),
        "position_ids": positions.expand(BATCH, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }


def touch_ideogram4(inputs: Inputs, sample: int, place: CallContext) -> None:
    _, row, column = place
    inputs["hidden_states"][sample, WORDS + row * ONE[2] + column] += 1


def touch_ideogram4_text(inputs: Inputs, sample: int, token: int) -> None:
    inputs["encoder_hidden_states"][sample, WORDS - TEXT[sample] + token] += 1


IDEOGRAM4 = WithoutText(
    "ideogram-4",
    build(
        Ideogram4Transformer2DModel,
        in_channels=16,
        num_layers=2,
        intermediate_size=32,
        adaln_dim=8,
        llm_features_dim=16,
        mrope_section=(4, 2, 2),
        **HEADS,
    ),
    ideogram4_inputs,
    touch_ideogram4,
    ONE,
    2,
    TEXT,
    touch_ideogram4_text,
)

JOYIMAGE = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": list(AXES),
}


def joyimage_edit_inputs() -> Inputs:
    return {**latents(), "hidden_states": noise(BATCH, 3, 4, 1, 2 * ONE[1], 2 * ONE[2])}


def touch_joyimage(inputs: Inputs, sample: int, place: CallContext) -> None:
    """The last image is the first frame."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame - 1, :, 0, 2 * row, 2 * column] += 1


JOYIMAGE_EDIT = TinyTransformer(
    "joyimage-edit",
    build(JoyImageEditTransformer3DModel, **JOYIMAGE),
    joyimage_edit_inputs,
    touch_joyimage,
    THREE,
    2,
    UNPADDED,
    touch_words,
)


def joyimage_edit_plus_inputs() -> Inputs:
    return {
        **latents(),
        "hidden_states": noise(BATCH, TWO[0] * TWO[1] * TWO[2], 4, 1, 2, 2),
        "encoder_hidden_states_mask": padding().long(),
        "shape_list": [[ONE, ONE]] * BATCH,
    }


JOYIMAGE_EDIT_PLUS = TinyTransformer(
    "joyimage-edit-plus",
    build(JoyImageEditPlusTransformer3DModel, **JOYIMAGE),
    joyimage_edit_plus_inputs,
    touch_tokens(TWO),
    TWO,
    2,
    TEXT,
    touch_words,
)


def ernie_image_inputs() -> Inputs:
    inputs = latents()
    text = inputs.pop("encoder_hidden_states")
    return {**inputs, "text_bth": text, "text_lens": torch.tensor(TEXT)}


ERNIE_IMAGE = TinyTransformer(
    "ernie-image",
    build(
        ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        text_in_dim=16,
        rope_axes_dim=AXES,
    ),
    ernie_image_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    TEXT,
    touch_first("text_bth"),
)


ROWS = [
    flux_like("ovis-image", OvisImageTransformer2DModel, lambda: flux_inputs(ONE), ONE),
    flux_like("longcat-image", LongCatImageTransformer2DModel, lambda: flux_inputs(TWO), TWO),
    flux_like("bria", BriaTransformer2DModel, lambda: flux_inputs(ONE), ONE),
    flux_like("bria-fibo", BriaFiboTransformer2DModel, fibo_inputs, TWO, TEXT, text_encoder_dim=16),
    fibo2(fibo2_inputs, (4, 3)),
    fibo2(fibo2_full, (4, 4)),
    IDEOGRAM4,
    JOYIMAGE_EDIT,
    JOYIMAGE_EDIT_PLUS,
    ERNIE_IMAGE,
]
