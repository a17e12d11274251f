"""The page of a model family: one complete script, what is sparse, what stays dense, and published settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CFG = {
    "separate": "Classifier-free guidance runs as two forwards in each step. Each has plans of its own.",
    "batched": "Classifier-free guidance runs as one batch. Each half has plans of its own.",
    "embedded": "Guidance is an input of the model, so each step is one forward.",
}
MEASURED = (
    "No clip of this family was made with trained weights. A tiny transformer with random weights passed the "
    "[family matrix](../families.md) on a CPU. Measure your own model with `dit-accel eval`."
)
BUNDLED = (
    "[Results](../results.md) of this family come from the small model in the package, on a CPU. No larger model was "
    "measured. Measure your own with `dit-accel eval`."
)


def index_page(families: Sequence[Mapping[str, Any]]) -> str:
    """Return the list of all families."""
    lines = [
        "# Recipes",
        "",
        "A page for each model family: one script, and what the package does there.",
        "",
    ]
    for output in dict.fromkeys(family["output"] for family in families):
        names = [family["family"] for family in families if family["output"] == output]
        lines += [f"## {output.capitalize()}s", ""]
        lines += [f"- [{name}]({name}.md)" for name in names]
        lines.append("")
    return "\n".join(lines)


def recipe_page(family: Mapping[str, Any], example: Mapping[str, Any] | None) -> str:
    """Return the page of a family.

    Args:
        family: A row of ``dit-accel models --json``.
        example: Its entry in models.yaml, if it has one.
    """
    lines = [f"# {family['family']}", "", *describe(family), "", "## A script", ""]
    lines += script(family, example)
    lines += ["", "## What is sparse", "", *what_is_sparse(family)]
    lines += ["", "## Published settings", "", *published(family["recipes"])]
    lines += ["", "## What was measured", "", BUNDLED if family["family"] == "wan" else MEASURED]
    return "\n".join(lines) + "\n"


def describe(family: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the family, and its remark."""
    names = ", ".join(f"`{name}`" for name in family["transformers"])
    lines = [f"Transformer of diffusers: {names}. It makes {family['output']}s."]
    return [*lines, "", f"Note: {family['remark']}."] if family["remark"] else lines


def script(family: Mapping[str, Any], example: Mapping[str, Any] | None) -> list[str]:
    """Return a complete script, or say how to begin where the family has no example."""
    if example is None:
        return [
            "Load the pipeline as its model card says. Then call `pipe.enable_sparse_attention()`, and print "
            "`pipe.attention_report()` after the clip or image."
        ]
    imports = ["export_to_video"] if family["output"] == "video" else []
    imports += ["load_image"] if example.get("image") else []
    code = ["import torch", f"from diffusers import {example['pipeline']}"]
    code += [f"from diffusers.utils import {', '.join(imports)}"] if imports else []
    inputs = '"a red fox in the snow"'
    if example.get("image"):
        inputs = f'image=load_image("start.png"), prompt={inputs}'
    code += ["", "import dit_accel", "", f'model = "{example["model"]}"']
    code += [
        f'pipe = {example["pipeline"]}.from_pretrained(model, dtype=torch.bfloat16).to("cuda")'
    ]
    code += ["pipe.enable_sparse_attention()  # svg-ear, 20 % dense steps"]
    if family["output"] == "video":
        code += [f"video = pipe({inputs}).frames[0]", 'export_to_video(video, "clip.mp4", fps=16)']
    else:
        code += [f'pipe({inputs}).images[0].save("image.png")']
    return ["```python", *code, "print(pipe.attention_report())", "```"]


def what_is_sparse(family: Mapping[str, Any]) -> Iterable[str]:
    """Yield what is sparse and what stays dense."""
    yield "- Self-attention among visual tokens is sparse."
    if family["joint"]:
        yield (
            "- Text tokens take part in self-attention. They stay dense: every query attends to the text, and the text "
            "to every key."
        )
    else:
        yield "- Cross-attention to the text is not touched."
    yield f"- {CFG[family['cfg']]}"
    guidance = "works" if family["perturbed_guidance"] else "is refused"
    yield f"- [Perturbed guidance](../guidance.md) {guidance}."
    yield (
        "- The first 20 % of the steps stay dense. So do calls with too few tokens, and calls with a causal or unknown "
        "mask. The report counts them with the reason."
    )


def published(recipes: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the published settings as a table."""
    if not recipes:
        yield "No paper published settings for this family."
        return
    yield f"""Use one by name, such as `pipe.enable_sparse_attention(profile="{recipes[0]["name"]}")`."""
    yield ""
    yield "| Name | Published for | Steps | Source |"
    yield "|---|---|---|---|"
    for recipe in recipes:
        size = "x".join(str(recipe[k]) for k in ("width", "height") if recipe[k])
        frames = f", {recipe['frames']} frames" if recipe["frames"] else ""
        cells = (
            f"`{recipe['name']}`",
            f"{recipe['model']}, {size}{frames}",
            recipe["steps"] or "",
            recipe["citation"],
        )
        yield f"| {' | '.join(map(str, cells))} |"
