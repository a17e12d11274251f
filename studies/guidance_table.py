"""Perturbed guidance on the tiny world: caption accuracy and sharpness over scale and softness, of found
heads, whole layers and random heads (several sets, one for each batch in turn), beside no guidance at the same
cost. Same noise everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
from diffusers import DiffusionPipeline
from scipy import stats
from tqdm import tqdm

from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import fingerprint, load_pipeline
from dit_accel.generation.render import versions
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.guidance import HeadSet, ModelShape
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import append_record, log_path, read_logs, to_json
from dit_accel_assets.world import SIZES, parse_caption, place_objects, render
from dit_accel_eval.heads.rewards import caption, caption_words, sharpness
from dit_accel_eval.heads.sampling import Candidate, Pair, chunks, same_cost_steps, sample
from dit_accel_eval.heads.search import all_heads, head_set
from dit_accel_eval.paired import held_out_prompts
from dit_accel_eval.statistics import estimate
from dit_accel_pipelines import Family

FIRST_SEED = 10_000  # no search has seen these
RANDOM_SETS = 5
REWARDS = {"caption": caption, "caption_words": caption_words, "sharpness": sharpness}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        candidates: how it is sampled: the batches take them in turn.
    """

    label: str
    guidance_scale: float
    candidates: tuple[Candidate, ...]

    def batches(self, pairs: Sequence[Pair], batch: int) -> list[tuple[Candidate, Sequence[Pair]]]:
        """The clips in batches, each with what it is sampled with."""
        return list(zip(cycle(self.candidates), chunks(pairs, batch), strict=False))


def rows(found: HeadSet, layer: str, steps: int, family: Family) -> Iterator[Row]:
    """What is compared, without and, in fewer rows, with classifier-free guidance."""
    heads = found.to_spec()
    for guidance_scale in (1.0, 2.0):
        yield Row("no guidance", guidance_scale, (Candidate(None),))
        longer = same_cost_steps(steps, guidance_scale, family, found)
        yield Row("no guidance, same cost", guidance_scale, (Candidate(None, steps=longer),))
        for scale, softness in ((3.0, 1.0), (3.0, 0.5), (1.0, 1.0)):
            if guidance_scale == 1.0 or (scale, softness) == (3.0, 1.0):
                chosen = Candidate(heads, scale, softness)
                yield Row(f"found heads s {scale:g} u {softness:g}", guidance_scale, (chosen,))
        yield Row(f"layer {layer} s 1", guidance_scale, (Candidate(layer, 1.0),))
    picked = tuple(Candidate(chance, 3.0) for chance in random_sets(found))
    yield Row("random heads s 3", 1.0, picked)


def random_sets(found: HeadSet) -> list[str]:
    """Sets of as many heads, drawn by chance: a mean over them is one over the choice of heads, too."""
    heads, generator = all_heads(found.model), np.random.default_rng(1)
    draws = [generator.choice(len(heads), len(found), replace=False) for _ in range(RANDOM_SETS)]
    return [head_set([heads[i] for i in sorted(draw)], found.model).to_spec() for draw in draws]


def run(
    table: Sequence[Row], base: RenderSettings, pairs: Sequence[Pair], batch: int, log: Path
) -> list[dict[str, Any]]:
    """Sample and judge what ``log`` does not hold yet, of several processes each its share of the batches (with a
    log beside the first one's); returns the records of these rows.
    """
    process = this_process()
    base, card = validate(replace(base, prompt=pairs[0][0]).as_dense())
    told = {k: v for k, v in asdict(base).items() if k not in ("prompt", "seed", "guidance_scale")}
    common = {**told, "weights": fingerprint(card.source), "versions": versions(), "batch": batch}
    common = json.loads(to_json({k: v for k, v in common.items() if k != "knobs"}))
    log.parent.mkdir(parents=True, exist_ok=True)
    own = log_path(log, process.rank)
    pipe = load_pipeline(card, process.load_options(base.load_options))
    pipe.set_progress_bar_config(disable=True)
    there = recorded(log, common)
    units = [(row, *one) for row in table for one in row.batches(pairs, batch)]
    for row, candidate, chunk in tqdm(process.share(units), desc="batches"):
        if not all(_key(row, candidate, pair) in there for pair in chunk):
            guided = replace(base, guidance_scale=row.guidance_scale)
            for record in judged(pipe, guided, candidate, chunk):
                append_record(own, {"common": common, **record})
    process.wait()
    there = recorded(log, common)
    return [
        {**there[_key(row, candidate, pair)], "label": row.label}
        for row, candidate, chunk in units
        for pair in chunk
    ]


def judged(
    pipe: DiffusionPipeline, base: RenderSettings, candidate: Candidate, pairs: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    """A batch of clips, each under every reward."""
    clips = sample(pipe, base, candidate, pairs)
    for (prompt, seed), clip in zip(pairs, clips, strict=True):
        yield {
            "guidance_scale": base.guidance_scale,
            "candidate": asdict(candidate),
            "prompt": prompt,
            "seed": seed,
            **{name: reward(clip, prompt) for name, reward in REWARDS.items()},
        }


def recorded(log: Path, common: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """What all processes have written, by guidance_scale, candidate, prompt and seed."""
    found = [r for r in read_logs(log) if r["common"] == common]
    return {
        (r["guidance_scale"], tuple(r["candidate"].values()), (r["prompt"], r["seed"])): r
        for r in found
    }


def summary(records: Sequence[Mapping[str, Any]], data: float) -> list[dict[str, Any]]:
    """Per row: share of right captions with its Wilson interval, sharpness as a share of the data's, and the
    paired differences from no guidance at the same guidance_scale, all with 95 % intervals.
    """
    plain = {
        (r["guidance_scale"], r["prompt"], r["seed"]): r
        for r in records
        if r["label"] == "no guidance"
    }
    table = []
    for label, scale in dict.fromkeys((r["label"], r["guidance_scale"]) for r in records):
        own = [r for r in records if (r["label"], r["guidance_scale"]) == (label, scale)]
        base = [plain[r["guidance_scale"], r["prompt"], r["seed"]] for r in own]
        heads = list(dict.fromkeys(r["candidate"]["heads"] for r in own))
        right = int(sum(r["caption"] for r in own))
        interval = stats.binomtest(right, len(own)).proportion_ci(method="wilson")
        line = {
            "label": label,
            "guidance_scale": scale,
            "heads": heads if len(heads) > 1 else heads[0],
            "clips": len(own),
            "right": right,
            "right_low": interval.low,
            "right_high": interval.high,
            "sharpness": estimate([r["sharpness"] / data for r in own]),
        }
        for name in REWARDS:
            line[f"{name}_gain"] = estimate(
                [r[name] - b[name] for r, b in zip(own, base, strict=True)]
            )
        table.append(line)
    return table


def sharpness_of_data(pairs: Sequence[Pair], height: int, width: int, frames: int) -> float:
    """Mean sharpness of true clips of the captions."""
    values = []
    for prompt, seed in pairs:
        scene = parse_caption(prompt)
        assert scene is not None
        placed = place_objects(scene, np.random.default_rng(seed))
        values.append(sharpness(render(placed, height, width, frames)))
    return float(np.mean(values))


def _key(row: Row, candidate: Candidate, pair: Pair) -> Any:
    return (row.guidance_scale, tuple(asdict(candidate).values()), pair)


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
    """Append to OUT/guidance.jsonl what is missing there, then write OUT/guidance.json; torchrun shares the work."""
    height, width, frames = SIZES[size]
    base = RenderSettings("", steps=steps, height=height, width=width, frames=frames, dtype=dtype)
    prompts = held_out_prompts(pairs, seed=7)
    clips = [(prompt, FIRST_SEED + number) for number, prompt in enumerate(prompts)]
    _, card = validate(replace(base, prompt=prompts[0]))
    model = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    table = list(rows(HeadSet.load(heads).fit_to(model), layer, steps, card.family))
    records = run(table, base, clips, batch, out / "guidance.jsonl")
    data = sharpness_of_data(clips, height, width, frames)
    lines = summary(records, data)
    told = {**records[0]["common"], "sharpness_of_the_data": data, "rows": lines}
    if this_process().rank > 0:
        return
    with atomic_write(out / "guidance.json") as temporary:
        temporary.write_text(to_json(told, indent=2) + "\n")
    for line in lines:
        gain = line["caption_gain"]
        click.echo(
            f"g {line['guidance_scale']:g}  {line['label']:30} right {line['right']}/{line['clips']} "
            f"({line['right_low']:.2f} to {line['right_high']:.2f}), gain {gain.mean:+.3f} +- "
            f"{gain.half_width:.3f}, sharpness {line['sharpness'].mean:.2f} of the data's"
        )


if __name__ == "__main__":
    main()
