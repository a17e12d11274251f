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


def recipe_page(
    family: Mapping[str, Any],
    example: Mapping[str, Any] | None,
    facts: Mapping[str, Any] | None,
    figures: Sequence[Mapping[str, Any]],
) -> str:
    """Return the page of a family.

    Args:
        family: A row of ``dit-accel models --json``.
        example: Its entry in models.yaml, if it has one.
        facts: Its entry in models.json; None if diffusers has no complete default configuration.
        figures: Its entries in figures.yaml.
    """
    lines = [f"# {family['family']}", "", *describe(family), "", "## A script", ""]
    lines += script(family, example)
    lines += ["", "## What is sparse", "", *what_is_sparse(family)]
    lines += ["", "## Sizes and memory", "", *sizes_and_memory(facts)]
    lines += ["", "## Published settings", "", *published(family["recipes"])]
    lines += ["", "## What was measured", "", BUNDLED if family["family"] == "wan" else MEASURED]
    if figures:
        lines += ["", "## What others measured", "", *measured_by_others(figures)]
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
    makes_video = example.get("output", family["output"]) == "video"
    imports = ["export_to_video"] if makes_video else []
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
    if makes_video:
        code += [f"video = pipe({inputs}).frames[0]", 'export_to_video(video, "clip.mp4", fps=16)']
    else:
        code += [f'pipe({inputs}).images[0].save("image.png")']
    return ["```python", *code, "print(pipe.attention_report())", "```"]


def what_is_sparse(family: Mapping[str, Any]) -> Iterable[str]:
    """Yield what is sparse and what stays dense."""
    yield "- Self-attention among visual tokens is sparse."
    if family["joint"]:
        yield (
            "- Text tokens take part in self-attention. They stay dense, because the prompt acts through them. Every "
            "query attends to the text, and the text to every key."
        )
    else:
        yield "- Cross-attention to the text stays dense, because it has few keys."
    yield f"- {CFG[family['cfg']]}"
    guidance = "works" if family["perturbed_guidance"] else "is refused"
    yield f"- [Perturbed guidance](../guidance.md) {guidance}."
    yield (
        "- The first 20 % of the steps stay dense, because published settings do so. Calls with too few tokens "
        "stay dense, because sparse ones would be slower. Calls with a causal or unknown mask stay dense, because no "
        "method knows that mask. The report counts them with the reason."
    )


def sizes_and_memory(facts: Mapping[str, Any] | None) -> Iterable[str]:
    """Yield the number of tokens and the memory of the sizes that are known, and how to learn those of others."""
    if facts and facts["sizes"]:
        yield "| Height x width | Frames | Tokens | Of them text | State of `svg-ear` | Size from |"
        yield "|---|---|---|---|---|---|"
        for size in facts["sizes"]:
            tokens, text = size["visual_tokens"] + size["text_tokens"], size["text_tokens"]
            state = f"{size['state_bytes'] / 1e9:.1f} GB"
            shown = f"{size['height']} x {size['width']} | {size['frames']} | {tokens:,} | {text:,}"
            yield f"| {shown} | {state} | {size['source']} |"
        yield ""
        yield (
            "Tokens are computed from the family's declaration, with the pipeline's default padding of the text. The "
            "state is what the method keeps between steps, in bfloat16, with guidance, and if every layer is sparse."
        )
        yield ""
    if facts:
        weights = 2 * facts["parameters"] / 1e9
        yield (
            f"These figures are for the default configuration of diffusers' class. It has {facts['layers']} layers of "
            f"self-attention with {facts['heads']} heads of {facts['head_dim']} channels. Its "
            f"{facts['parameters'] / 1e9:.1f} billion parameters take {weights:.1f} GB in bfloat16. The checkpoint "
            "of the script may be smaller or larger. Text encoders, VAE and activations come on top."
        )
        yield ""
    yield (
        "`dit-accel render --dry-run` prints the tokens and the state for your own checkpoint and size. The peak of a "
        "real run on a GPU is `torch.cuda.max_memory_allocated()`."
    )


def measured_by_others(figures: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the figures that authors published, with their sources."""
    yield (
        "The authors of the source measured these figures, with their own code. None was measured with dit_accel. "
        "Dense baselines differ between sources."
    )
    yield ""
    yield "| Model | Method | GPU | Speed-up | Quality | Source |"
    yield "|---|---|---|---|---|---|"
    for row in figures:
        cells = [str(row[name]) for name in ("model", "method", "gpu", "speedup", "quality")]
        link = f"[{row['where']}](https://arxiv.org/abs/{row['arxiv']})"
        yield f"| {' | '.join([*cells, link])} |"


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
