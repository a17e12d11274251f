"""Test video families beyond the family matrix: layouts and calls that stay dense."""

import pytest
import torch
from support.tiny_transformers import kandinsky5, skyreels_v2
from support.tiny_transformers.inputs import VIDEO_GRID, noise, video_latents

import dit_accel
from dit_accel import SVG2, Schedule
from dit_accel.hooks import layers, processors
from dit_accel_pipelines import TokenLayout, find_family

ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)


def test_skyreels_with_causal_blocks_of_frames_stays_dense() -> None:
    transformer = skyreels_v2.transformer()
    transformer._set_ar_attention(2)
    inputs = {**video_latents(), "hidden_states": noise(2, 4, 4, 8, 12)}
    with torch.no_grad():
        expected = transformer(**inputs).sample
        with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=ALL_SPARSE) as session:
            sample = transformer(**inputs).sample
            report = session.report()
    assert torch.equal(sample, expected)
    assert report.fallbacks == {"attention mask": 2}


@pytest.mark.parametrize(
    "name", ["LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"], ids=str
)
@pytest.mark.parametrize(
    ("sizes", "tokens", "layout"),
    [
        (VIDEO_GRID, 72, TokenLayout(*VIDEO_GRID)),
        # A keyframe comes after the video.
        (VIDEO_GRID, 72 + 24, TokenLayout(1, 1, 96)),
        ((1, 1, 1), 72, TokenLayout(1, 1, 72)),
        ((None, None, None), 72, TokenLayout(1, 1, 72)),
    ],
)
def test_ltx_has_a_grid_if_all_tokens_belong_to_the_video(name, sizes, tokens, layout) -> None:
    arguments = dict(zip(("num_frames", "height", "width"), sizes, strict=True))
    arguments["video_coords"] = torch.zeros(2, 3, tokens)
    assert find_family(name).layout(arguments, {}) == layout


def test_a_mask_that_is_not_a_tensor_goes_to_the_users_backend(monkeypatch) -> None:
    """Check a mask like Kandinsky's BlockMask for FlexAttention."""
    transformer, calls = kandinsky5.transformer(), []
    monkeypatch.setattr(
        layers, "dispatch_attention_fn", lambda q, *_, **named: calls.append(named) or q
    )
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=ALL_SPARSE) as session:
        processor = transformer.visual_transformer_blocks[0].self_attention.processor
        query, mask = noise(1, 8, 2, 16), object()
        address = processor.view._attention_backend
        out = processors._dispatch(query, query, query, mask, backend=address)
        assert session.report().fallbacks == {"attention mask": 1}
    assert torch.equal(out, query)
    assert calls[0]["attn_mask"] is mask
