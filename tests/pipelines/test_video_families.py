"""What the family matrix cannot say of video models: where they stay dense, or are refused."""

import pytest
import torch
from support.tiny_transformers.base import GRID, noise
from support.tiny_transformers.shared import video
from support.tiny_transformers.video import kandinsky5
from support.tiny_transformers.video_wan_like import skyreels_v2

import dit_accel
from dit_accel import SVG2, Schedule
from dit_accel.hooks import layers, processors
from dit_accel_pipelines import TokenLayout, find_family

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)


def test_skyreels_in_causal_blocks_of_frames_stays_dense() -> None:
    transformer = skyreels_v2()
    transformer._set_ar_attention(2)
    inputs = {**video(), "hidden_states": noise(2, 4, 4, 8, 12)}
    with torch.no_grad():
        expected = transformer(**inputs).sample
        with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=EVERYWHERE) as session:
            found = transformer(**inputs).sample
            report = session.report()
    assert torch.equal(found, expected)
    assert report.fallbacks == {"attention mask": 2}


@pytest.mark.parametrize(
    "name", ["LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"], ids=str
)
@pytest.mark.parametrize(
    ("sizes", "tokens", "layout"),
    [
        (GRID, 72, TokenLayout(*GRID)),
        (GRID, 72 + 24, TokenLayout(1, 1, 96)),  # a keyframe follows
        ((1, 1, 1), 72, TokenLayout(1, 1, 72)),
        ((None, None, None), 72, TokenLayout(1, 1, 72)),
    ],
)
def test_ltx_knows_its_grid_where_no_other_tokens_follow(name, sizes, tokens, layout) -> None:
    arguments = dict(zip(("num_frames", "height", "width"), sizes, strict=True))
    arguments["video_coords"] = torch.zeros(2, 3, tokens)
    assert find_family(name).layout(arguments, {}) == layout


def test_a_mask_that_is_no_tensor_goes_to_the_users_backend(monkeypatch) -> None:
    """As Kandinsky's BlockMask, which FlexAttention takes."""
    transformer, given = kandinsky5(), []
    monkeypatch.setattr(
        layers, "dispatch_attention_fn", lambda q, *_, **named: given.append(named) or q
    )
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=EVERYWHERE) as session:
        processor = transformer.visual_transformer_blocks[0].self_attention.processor
        query, mask = noise(1, 8, 2, 16), object()
        address = processor.view._attention_backend
        found = processors._dispatch(query, query, query, mask, backend=address)
        assert session.report().fallbacks == {"attention mask": 1}
    assert torch.equal(found, query)
    assert given[0]["attn_mask"] is mask
