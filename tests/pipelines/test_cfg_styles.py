"""Test that classifier-free guidance is declared as the code of diffusers' pipelines runs it."""

from __future__ import annotations

import inspect
import re

import diffusers
import pytest

from dit_accel_pipelines import Family, families

BATCHED = re.compile(
    r"torch\.cat\(\[\w*(?:latent|input)\w*\] \* 2|torch\.cat\(\[(\w+), \1\]"
    r"|latents\w*\.repeat\(2, |torch\.cat\(\[negative_prompt_embeds, prompt_embeds\]"
)
POSTPROCESS = re.compile(r"\w*_norm = torch\.norm\(|optimized_scale\(|\.clip\(-")
FORWARD = re.compile(r"(?:= |\()(?:self\.)?(?:transformer|current_model)\(\s")
EMBEDDED = re.compile(r"\bguidance\w* = torch\.(?:tensor|full)")


def find_pipelines(family: Family) -> list[type]:
    """Return diffusers' pipelines whose constructor annotates a transformer of a family."""
    pipelines = []
    for name in dir(diffusers):
        if not name.endswith("Pipeline"):
            continue
        pipeline = getattr(diffusers, name)
        if not inspect.isclass(pipeline) or "__init__" not in vars(pipeline):
            continue
        parameters = inspect.signature(pipeline.__init__).parameters
        annotation = str(parameters.get("transformer", ""))
        if any(re.search(rf"\b{name}\b", annotation) for name in family.transformers):
            pipelines.append(pipeline)
    return pipelines


def find_styles(pipeline: type) -> set[str]:
    """Return the styles of guidance that the code of a pipeline's call contains."""
    code = inspect.getsource(pipeline.__call__)
    if BATCHED.search(code):
        return {"batched"}
    forwards = len(FORWARD.findall(code)) + 2 * ("guider.prepare_inputs(" in code)
    styles = {"separate"} if forwards > 1 else {"embedded"}
    return styles | {"embedded"} if EMBEDDED.search(code) else styles


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_cfg_style_is_as_declared(family: Family) -> None:
    styles = {pipeline.__name__: find_styles(pipeline) for pipeline in find_pipelines(family)}
    if not styles:
        pytest.skip(f"no pipeline of diffusers names {', '.join(family.transformers)}")
    assert any(family.cfg in found for found in styles.values()), styles


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_postprocess_is_as_declared(family: Family) -> None:
    code = [inspect.getsource(pipeline.__call__) for pipeline in find_pipelines(family)]
    if not code or not family.guidance:
        pytest.skip("perturbed guidance runs in no pipeline of diffusers")
    assert any(map(POSTPROCESS.search, code)) == bool(family.postprocess)
    for switch in (process.switch for process in family.postprocess):
        assert any(re.search(rf"\b{switch}\b", text) for text in code)
