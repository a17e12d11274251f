"""Every variant of ComfyUI's models that the documentation names: ``pytest --comfyui=DIR``."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from support.comfyui_models import (
    FAMILIES,
    only_override,
    patch_attention,
    patch_guidance,
    sample,
)
from support.comfyui_variants import VARIANTS

from dit_accel.comfyui.native_guidance import PerturbedOverride


class Expected(NamedTuple):
    """The rows of the image in layer 1, the number of all rows, and the sparse calls of two steps."""

    start: int
    stop: int
    rows: int
    sparse: int = 6


VIDEO = Expected(0, 72, 72)
# 7 tokens of text, 48 of the image, and 24 of a reference.
JOINT, REFERENCE = Expected(7, 55, 55), Expected(7, 55, 79)
EXPECTED = {
    "wan": VIDEO,
    "flux": JOINT,
    "hunyuan": Expected(7, 79, 79),
    "ltx-av": VIDEO,
    # Its conditions need a call each. 7 tokens of text and 22 of sound come before the video.
    "minimax-h3": Expected(29, 101, 101, sparse=12),
    "wan-i2v": VIDEO,
    # One block more for the frames that lead the video.
    "wan-vace": VIDEO._replace(sparse=8),
    "wan-2.2-5b": VIDEO,
    "flux-kontext": REFERENCE,
    "flux2": Expected(512, 1112, 1112),
    "chroma": JOINT,
    # 5 tokens of a second encoder are none of the conditions' text.
    "hunyuan-1.5": Expected(12, 84, 84),
    "ltxv": VIDEO,
    "qwen-image": JOINT,
    "qwen-edit": REFERENCE,
    # Layer 0 is the refiner, which sees the image alone.
    "lumina2": JOINT._replace(sparse=8),
    "z-image": Expected(32, 80, 96, sparse=8),
    "kandinsky5": VIDEO,
    "cogvideox": Expected(7, 79, 79),
}


@pytest.fixture(params=list(EXPECTED))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str, comfy: Any) -> SimpleNamespace:
    return (FAMILIES | VARIANTS)[name](comfy)


def test_all_variants_are_expected() -> None:
    assert list(EXPECTED) == [*FAMILIES, *VARIANTS]


DENSE = (
    "cross attention",
    "fewer tokens than the image has",
    "attention over another stream than the image",
)
"""Reasons why calls of an unmasked model stay dense."""


# A neighborhood needs the grid: with the wrong one, the wrong tokens are neighbors.
@pytest.mark.parametrize(
    ("method", "full", "part"),
    [
        ("svg2", "top_p=1", "top_p=0.3;min_key_share=0"),
        ("neighborhood", "density=1", "density=0.5"),
    ],
)
def test_full_selection_equals_the_unpatched_model(name, model, method, full, part) -> None:
    plain = sample(model, model.patcher)
    assert torch.isfinite(plain).all()
    expected, reasons = EXPECTED[name].sparse, set(DENSE)
    if name == "lumina2" and not hasattr(model.comfy.supported_models, "ZImage"):
        # Old versions of ComfyUI give the refiner of the image a mask of zeros.
        expected, reasons = expected - 2, reasons | {"attention mask"}
    for knobs, is_full in ((full, True), (part, False)):
        patched = patch_attention(model.patcher, method, knobs)
        latent = sample(model, patched)
        error = float((latent - plain).abs().max() / plain.abs().max())
        assert error < 2e-5 if is_full else error > 1e-3, (knobs, error)
        run = only_override(patched).run
        assert run.stats.calls["sparse"] == expected
        assert set(run.stats.fallbacks) <= reasons
    assert torch.equal(sample(model, model.patcher), plain), "the patch changed the original model"


def test_guidance_acts_on_the_rows_of_the_image(name, model, monkeypatch) -> None:
    found, perturb = [], PerturbedOverride.perturb

    def watch(self: Any, clean: torch.Tensor, call: Any, model_call: Any) -> torch.Tensor:
        perturbed = perturb(self, clean, call, model_call)
        found.append((clean != perturbed).any(-1).any(-1).any(0))
        return perturbed

    monkeypatch.setattr(PerturbedOverride, "perturb", watch)
    plain = sample(model, model.patcher)
    latent = sample(model, patch_guidance(model.patcher))
    assert not torch.allclose(latent, plain, atol=1e-4)
    expected = EXPECTED[name]
    blocks = getattr(model.patcher.model.diffusion_model, "double_blocks", None)
    if name == "hunyuan" and getattr(blocks[0], "flipped_img_txt", False):
        # Old versions of ComfyUI put the image first.
        expected = Expected(0, 72, 79)
    assert len(found) == 2
    for changed in found:
        rows = changed.nonzero().flatten().tolist()
        assert len(changed) == expected.rows
        assert rows == list(range(expected.start, expected.stop))
