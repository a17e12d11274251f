"""Perturbed attention equals the result of explicit attention maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.explicit_maps import explicit_attention
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel import PerturbedGuidance
from dit_accel.guidance.joint_tokens import JointTokens
from dit_accel.guidance.perturb import needed_attention, soft_perturbation

KINDS = ("identity", "uniform", "mean-query", "renormalized-identity", "zeroed-identity")


def guidance(softness, kind="identity", mode="visual") -> PerturbedGuidance:
    return PerturbedGuidance(softness=softness, perturbation=kind, text_mode=mode)


def inputs(batch=2, size=23, heads=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, size, heads, width, generator=generator) for _ in range(3))


def perturb(query, key, value, mask, text, text_first, heads, softness, kind, mode):
    tokens = JointTokens(query, key, value, query.shape[-1] ** -0.5, mask, text, text_first)
    indices = None if len(heads) == query.shape[2] else torch.tensor(heads)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    attention = dense.transpose(1, 2).contiguous()
    rows = needed_attention(tokens, indices, guidance(softness, kind, mode))
    if rows != "all":
        attention = attention[:, tokens.text_range] if rows == "text" else None
    return soft_perturbation(attention, tokens, indices, guidance(softness, kind, mode))


def visual_tokens(size, text, text_first):
    visual = torch.ones(size, dtype=torch.bool)
    visual[:text] = not text_first or not text
    if not text_first and text:
        visual[:] = True
        visual[size - text :] = False
    return visual


def check(query, key, value, mask, text, text_first, heads, softness, kind, mode):
    out = perturb(query, key, value, mask, text, text_first, heads, softness, kind, mode)
    visual = visual_tokens(query.shape[1], text, text_first)
    transposed = (t.transpose(1, 2) for t in (query, key, value))
    expected = explicit_attention(*transposed, mask, visual, heads, softness, kind, mode)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["visual", "joint"])
@pytest.mark.parametrize(("text", "text_first"), [(0, False), (5, True), (5, False)], ids=str)
@pytest.mark.parametrize("softness", [1.0, 0.3], ids=lambda u: f"u={u}")
@pytest.mark.parametrize("heads", [[0, 1, 2], [0, 2]], ids=["all", "two heads"])
def test_equals_explicit_maps(kind, mode, text, text_first, softness, heads) -> None:
    check(*inputs(), None, text, text_first, heads, softness, kind, mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boolean", [True, False], ids=["bool", "additive"])
def test_masks_for_padded_text(kind, boolean) -> None:
    mask = torch.ones(2, 1, 1, 23, dtype=torch.bool)
    mask[0, ..., 20:], mask[1, ..., 22:] = False, False
    if not boolean:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    check(*inputs(), mask, 5, False, [1], 0.7, kind, "visual")


@pytest.mark.parametrize("kind", KINDS)
def test_masks_with_a_row_per_head(kind) -> None:
    mask = torch.ones(2, 3, 1, 23, dtype=torch.bool)
    mask[0, 1, :, 20:] = False
    check(*inputs(), mask, 5, False, [1, 2], 1.0, kind, "visual")


@given(
    size=st.integers(2, 40),
    text_fraction=st.floats(0, 1),
    softness=st.floats(0, 1),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(["visual", "joint"]),
    text_first=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_number_of_tokens(size, text_fraction, softness, kind, mode, text_first, seed) -> None:
    text = min(size - 1, int(text_fraction * size))
    check(*inputs(1, size, seed=seed), None, text, text_first, [0, 2], softness, kind, mode)


def test_softness_zero_keeps_every_bit() -> None:
    query, key, value = inputs()
    attention = torch.randn_like(query)
    tokens = JointTokens(query, key, value, 0.3)
    for kind in KINDS:
        out = soft_perturbation(attention, tokens, None, guidance(0.0, kind))
        assert torch.equal(out, attention)


def test_identity_without_text_returns_the_values() -> None:
    query, key, value = inputs()
    tokens = JointTokens(query, key, value, 0.3)
    assert needed_attention(tokens, None, guidance(1.0)) == "none"
    joint = JointTokens(query, key, value, 0.3, None, 5)
    assert needed_attention(joint, None, guidance(1.0)) == "text"
    assert needed_attention(joint, None, guidance(1.0, mode="joint")) == "none"
    assert needed_attention(joint, torch.tensor([1]), guidance(1.0, mode="joint")) == "all"
    out = soft_perturbation(None, tokens, None, guidance(1.0))
    assert torch.equal(out, value)
    assert out.data_ptr() != value.data_ptr()


def test_attention_to_text_is_computed_in_chunks(monkeypatch) -> None:
    monkeypatch.setattr("dit_accel.guidance.joint_tokens.MAX_LOGITS", 7 * 2 * 3 * 5)
    tokens = JointTokens(*inputs(), 0.3, None, 5, True)
    assert list(tokens.split_rows(slice(5, 23), 5)) == [slice(5, 12), slice(12, 19), slice(19, 23)]
    for kind in KINDS:
        check(*inputs(), None, 5, True, [0, 1, 2], 1.0, kind, "visual")
    mask = torch.ones(1, 1, 23, 23, dtype=torch.bool).tril()
    mask[..., :5] = True
    check(*inputs(), mask, 5, True, [0, 1, 2], 0.5, "identity", "visual")


ALL_SETTINGS = (
    *(guidance(0.5, kind, mode) for kind in KINDS for mode in ("visual", "joint")),
    PerturbedGuidance(softness=0.5, perturbation="blurred-query", sigma=2.0),
    *(
        PerturbedGuidance(softness=0.5, interpolation=path, text_mode="joint")
        for path in ("fisher-rao", "slerp", "log-linear")
    ),
)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=str)
def test_no_synchronization_with_the_device(settings) -> None:
    with FakeTensorMode():
        query, key, value = (torch.empty(1, 9000, 4, 64, device="cuda") for _ in range(3))
        mask = torch.empty(1, 1, 1, 9000, dtype=torch.bool, device="cuda")
        tokens = JointTokens(query, key, value, 0.1, mask, 100, True, (1, 89, 100))
        heads = torch.empty(2, dtype=torch.int64, device="cuda")
        out = soft_perturbation(torch.empty_like(query), tokens, heads, settings)
        assert out.shape == query.shape


@pytest.mark.gpu
@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=str)
def test_on_a_gpu(settings) -> None:
    tensors, heads = inputs(size=300, width=64), torch.tensor([0, 2])
    attention = torch.randn_like(tensors[0])
    expected = soft_perturbation(
        attention, JointTokens(*tensors, 0.1, None, 40, grid=(1, 20, 13)), heads, settings
    )
    tokens = JointTokens(*(t.cuda() for t in tensors), 0.1, None, 40, grid=(1, 20, 13))
    on_device = (attention.cuda(), tokens, heads.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = soft_perturbation(*on_device, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(output.cpu(), expected, atol=2e-3, rtol=2e-3)
