"""How each family's pipelines run classifier-free guidance, read from their own code."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest

from dit_accel_pipelines import Family, families

DOUBLED = re.compile(
    r"torch\.cat\(\[\w*(?:latent|input)\w*\] \* 2|torch\.cat\(\[(\w+), \1\]"
    r"|latents\w*\.repeat\(2, |torch\.cat\(\[negative_prompt_embeds, prompt_embeds\]"
)
SCALED = re.compile(r"\w*_norm = torch\.norm\(|optimized_scale\(|\.clip\(-")
CALLED = re.compile(r"(?:= |\()(?:self\.)?(?:transformer|current_model)\(\s")
EMBEDDED = re.compile(r"\bguidance\w* = torch\.(?:tensor|full)")


def pipelines_of(family: Family) -> list[type]:
    """Diffusers' pipelines whose transformer is of a family, by the annotation of their constructor."""
    found = []
    for name in dir(diffusers):
        if not name.endswith("Pipeline"):
            continue
        kind = getattr(diffusers, name)
        if not inspect.isclass(kind) or "__init__" not in vars(kind):
            continue
        told = str(inspect.signature(kind.__init__).parameters.get("transformer", ""))
        if any(re.search(rf"\b{transformer}\b", told) for transformer in family.transformers):
            found.append(kind)
    return found


def styles_of(pipeline: type) -> set[str]:
    """What the code of its call can do."""
    code = inspect.getsource(pipeline.__call__)
    if DOUBLED.search(code):
        return {"batched"}
    calls = len(CALLED.findall(code)) + 2 * ("guider.prepare_inputs(" in code)
    found = {"separate"} if calls > 1 else {"embedded"}
    return found | {"embedded"} if EMBEDDED.search(code) else found


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_guidance_runs_as_declared(family: Family) -> None:
    kinds = {kind.__name__: styles_of(kind) for kind in pipelines_of(family)}
    if not kinds:
        pytest.skip(f"no pipeline of diffusers names {', '.join(family.transformers)}")
    assert any(family.cfg in styles for styles in kinds.values()), kinds


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_what_pipelines_do_to_guided_predictions_is_declared(family: Family) -> None:
    code = [inspect.getsource(kind.__call__) for kind in pipelines_of(family)]
    if not code or not family.guidance:
        pytest.skip("no pipeline of diffusers that perturbed guidance runs in")
    assert any(map(SCALED.search, code)) == bool(family.postprocess)
    for switch in (process.switch for process in family.postprocess):
        assert any(re.search(rf"\b{switch}\b", text) for text in code)
