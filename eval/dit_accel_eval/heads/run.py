"""Run a head search."""

from __future__ import annotations

from itertools import product

from tqdm import tqdm

from dit_accel.generation.distributed import this_process
from dit_accel_eval.heads.rewards import load_reward
from dit_accel_eval.heads.sampling import Sampler, Scores, chunks
from dit_accel_eval.heads.search import Head, Search


def run_search(
    search: Search, *, quiet: bool = False, wait_for_others: bool = False
) -> list[Head] | None:
    """Sample and score this shard's part of the missing clips.

    Args:
        search: search to run.
        quiet: show no progress bar.
        wait_for_others: begin each stage when all processes of this launch have finished the one before.

    Returns:
        The heads in the order of choice, or None while other shards are not done. There are none if the reward has
        thresholds that no head reaches.
    """
    settings, (index, count) = search.settings, search.shard
    sampler = make_sampler(search, search.scores)
    total = search.clips() // count
    with tqdm(total=total, desc="clips", unit="clip", disable=quiet or None) as bar:
        for stage in search.stages():
            batches = list(product(stage, chunks(settings.pairs, settings.batch)))
            for candidate, pairs in batches[index::count]:
                sampler.score(candidate, pairs, bar)
            if wait_for_others:
                this_process().wait()
    return search.chosen() if search.is_complete() else None


def make_sampler(search: Search, scores: Scores) -> Sampler:
    """Return a sampler of the search that appends to some scores, with the reward's models loaded.

    Raises:
        InvalidSettings: if weights of the reward are missing.
    """
    settings = search.settings
    device = this_process().load_options(search.base.load_options).device
    reward = load_reward(settings.reward, settings.reward_weights, device)
    return Sampler(search.base, search.card, reward, settings, scores)
