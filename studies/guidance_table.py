"""Measure perturbed guidance on the tiny world: caption accuracy and sharpness over scale and softness.

The table compares heads from a search, a whole layer, random heads, and no guidance at the same cost. All clips start
from the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
from diffusers import DiffusionPipeline
from tqdm import tqdm

from dit_accel.generation.distributed import this_process
from dit_accel.generation.identity import versions
from dit_accel.generation.loading import fingerprint
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import HeadSet, ModelShape
from dit_accel.io.jsonl import write_json
from dit_accel_assets.world import SIZES, parse_caption, place_objects, render
from dit_accel_eval.heads.rewards import caption, caption_words, sharpness
from dit_accel_eval.heads.sampling import Candidate, Pair, chunks, same_cost_steps, sample
from dit_accel_eval.heads.search import all_heads, head_set
from dit_accel_eval.paired_runner import Record, RecordLog, load_silently
from dit_accel_eval.statistics import mean_ci, proportion_ci
from dit_accel_pipelines import Family
from studies.paired_table import held_out_prompts

FIRST_SEED = 10_000  # Head searches use smaller seeds.
RANDOM_SETS = 5
KEY_FIELDS = ("common", "guidance_scale", "candidate", "prompt", "seed")
REWARDS = {"caption": caption, "caption_words": caption_words, "sharpness": sharpness}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        label, guidance_scale: Together they name the row.
        candidates: Head sets or none. The batches take them in turn.
    """

    label: str
    guidance_scale: float
    candidates: tuple[Candidate, ...]

    def batches(self, pairs: Sequence[Pair], batch: int) -> list[tuple[Candidate, Sequence[Pair]]]:
        """Return the clips in batches, each with the candidate that samples it."""
        return list(zip(cycle(self.candidates), chunks(pairs, batch), strict=False))


def rows(chosen: HeadSet, layer: str, steps: int, family: Family) -> Iterator[Row]:
    """Yield the rows of the table: without and, fewer of them, with classifier-free guidance.

    Args:
        chosen: Heads that a search chose.
        layer: Spec of the best whole layer.
        steps: Number of denoising steps of the guided rows.
        family: Family of the model.
    """
    heads = chosen.to_spec()
    for guidance_scale in (1.0, 2.0):
        yield Row("no guidance", guidance_scale, (Candidate(None),))
        longer = same_cost_steps(steps, guidance_scale, family, chosen)
        yield Row("no guidance, same cost", guidance_scale, (Candidate(None, steps=longer),))
        for scale, softness in ((3.0, 1.0), (3.0, 0.5), (1.0, 1.0)):
            if guidance_scale == 1.0 or (scale, softness) == (3.0, 1.0):
                candidate = Candidate(heads, scale, softness)
                yield Row(f"found heads s {scale:g} u {softness:g}", guidance_scale, (candidate,))
        yield Row(f"layer {layer} s 1", guidance_scale, (Candidate(layer, 1.0),))
    random_candidates = tuple(Candidate(spec, 3.0) for spec in random_sets(chosen))
    yield Row("random heads s 3", 1.0, random_candidates)


def random_sets(chosen: HeadSet) -> list[str]:
    """Return specs of random sets of as many heads. Their mean is also a mean over the choice of heads."""
    heads, generator = all_heads(chosen.model), np.random.default_rng(1)
    draws = [generator.choice(len(heads), len(chosen), replace=False) for _ in range(RANDOM_SETS)]
    return [head_set([heads[i] for i in sorted(draw)], chosen.model).to_spec() for draw in draws]


def run(
    table: Sequence[Row], base: RenderSettings, pairs: Sequence[Pair], batch: int, path: Path
) -> list[Record] | None:
    """Sample and score what a log does not hold yet, of the batches that are this process's share.

    Returns:
        The records of the rows, or None while other processes have batches left.
    """
    process = this_process()
    base, card = validate(replace(base, prompt=pairs[0][0]).as_dense())
    varying = ("prompt", "seed", "guidance_scale", "knobs")
    request = {name: value for name, value in asdict(base).items() if name not in varying}
    common = {
        **request,
        "weights": fingerprint(card.source),
        "versions": versions(),
        "batch": batch,
    }
    pipe = load_silently(card, process.load_options(base.load_options))
    log = RecordLog(path, KEY_FIELDS)

    def describe(row: Row, candidate: Candidate, pair: Pair) -> Record:
        names = {"guidance_scale": row.guidance_scale, "candidate": asdict(candidate)}
        return {"common": common, **names, "prompt": pair[0], "seed": pair[1]}

    done = log.read()
    units = [(row, *unit) for row in table for unit in row.batches(pairs, batch)]
    for row, candidate, chunk in tqdm(process.share(units), desc="batches"):
        descriptions = [describe(row, candidate, pair) for pair in chunk]
        if not all(log.key(description) in done for description in descriptions):
            guided = replace(base, guidance_scale=row.guidance_scale)
            scores = score_batch(pipe, guided, candidate, chunk)
            for description, rewards in zip(descriptions, scores, strict=True):
                log.append(process.rank, {**description, **rewards})
    records = log.read()
    keys = [
        (row.label, log.key(describe(row, candidate, pair)))
        for row, candidate, chunk in units
        for pair in chunk
    ]
    if any(key not in records for _, key in keys):
        return None
    return [{**records[key], "label": label} for label, key in keys]


def score_batch(
    pipe: DiffusionPipeline, base: RenderSettings, candidate: Candidate, pairs: Sequence[Pair]
) -> Iterator[dict[str, float]]:
    """Sample a batch of clips, and yield the rewards of each."""
    clips = sample(pipe, base, candidate, pairs)
    for (prompt, _), clip in zip(pairs, clips, strict=True):
        yield {name: reward(clip, prompt) for name, reward in REWARDS.items()}


def summarize(records: Sequence[Mapping[str, Any]], data: float) -> list[dict[str, Any]]:
    """Return a line per row of the table, with 95 % intervals.

    A line holds the share of correct captions, sharpness as a share of ``data``, and the paired differences from no
    guidance at the same guidance_scale.
    """
    unguided = {
        (r["guidance_scale"], r["prompt"], r["seed"]): r
        for r in records
        if r["label"] == "no guidance"
    }
    lines = []
    for label, scale in dict.fromkeys((r["label"], r["guidance_scale"]) for r in records):
        labelled = [r for r in records if (r["label"], r["guidance_scale"]) == (label, scale)]
        base = [unguided[scale, r["prompt"], r["seed"]] for r in labelled]
        heads = list(dict.fromkeys(r["candidate"]["heads"] for r in labelled))
        captions = proportion_ci(int(sum(r["caption"] for r in labelled)), len(labelled))
        line = {
            "label": label,
            "guidance_scale": scale,
            "heads": heads if len(heads) > 1 else heads[0],
            "clips": captions.n,
            "right": captions.right,
            "right_low": captions.low,
            "right_high": captions.high,
            "sharpness": mean_ci([r["sharpness"] / data for r in labelled]),
        }
        for name in REWARDS:
            gains = [r[name] - b[name] for r, b in zip(labelled, base, strict=True)]
            line[f"{name}_gain"] = mean_ci(gains)
        lines.append(line)
    return lines


def sharpness_of_data(pairs: Sequence[Pair], height: int, width: int, frames: int) -> float:
    """Return the mean sharpness of true clips of the captions."""
    values = []
    for prompt, seed in pairs:
        scene = parse_caption(prompt)
        assert scene is not None
        placed = place_objects(scene, np.random.default_rng(seed))
        values.append(sharpness(render(placed, height, width, frames)))
    return float(np.mean(values))


@click.command()
@click.option("--heads", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--layer", required=True, help="The best whole layer of the search.")
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="smoke")
@click.option("--pairs", default=200, show_default=True)
@click.option("--steps", default=12, show_default=True)
@click.option("--batch", default=10, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    heads: Path, layer: str, size: str, pairs: int, steps: int, batch: int, dtype: str, out: Path
) -> None:
    """Append missing records to OUT/guidance.jsonl, then write OUT/guidance.json."""
    height, width, frames = SIZES[size]
    base = RenderSettings("", steps=steps, height=height, width=width, frames=frames, dtype=dtype)
    prompts = held_out_prompts(pairs, seed=7)
    clips = [(prompt, FIRST_SEED + number) for number, prompt in enumerate(prompts)]
    _, card = validate(replace(base, prompt=prompts[0]))
    model = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    table = list(rows(HeadSet.load(heads).fit_to(model), layer, steps, card.family))
    records = run(table, base, clips, batch, out / "guidance.jsonl")
    if records is None:
        return
    data = sharpness_of_data(clips, height, width, frames)
    lines = summarize(records, data)
    facts = {**records[0]["common"], "sharpness_of_the_data": data}
    write_json(out / "guidance.json", {**facts, "rows": lines})
    for line in lines:
        click.echo(describe_line(line))


def describe_line(line: Mapping[str, Any]) -> str:
    """Return a line of the table as text."""
    gain, sharp = line["caption_gain"], line["sharpness"].mean
    share = f"{line['right']}/{line['clips']} ({line['right_low']:.2f} to {line['right_high']:.2f})"
    return (
        f"g {line['guidance_scale']:g}  {line['label']:30} right {share}, "
        f"gain {gain.mean:+.3f} +- {gain.half_width:.3f}, sharpness {sharp:.2f} of the data's"
    )


if __name__ == "__main__":
    main()
