"""The only names that reach upward: what the command line and the nodes find in the evaluation
package, when it is there.
"""

from __future__ import annotations

import importlib
import operator
from typing import Any

from dit_accel.errors import RunFailed

UPWARD = {
    "psnr": "dit_accel_eval.metrics.psnr:psnr",
    "ssim": "dit_accel_eval.metrics.ssim:ssim",
    "lpips": "dit_accel_eval.metrics.lpips:lpips_or_reason",
    "lpips_net": "dit_accel_eval.metrics.lpips:net_of",
    "flicker": "dit_accel_eval.metrics.flicker:flicker_difference",
    "drift": "dit_accel_eval.metrics.drift:drift",
    "clip_score": "dit_accel_eval.metrics.clip_score:clip_score_or_reason",
    "caption": "dit_accel_eval.metrics.caption:caption_correct",
    "run_bench": "dit_accel_eval.bench.run:run_bench",
    "bench_rates": "dit_accel_eval.bench.rates:bench_rates",
    "capture": "dit_accel_eval.bench.capture:capture",
    "recall": "dit_accel_eval.bench.recall:recall",
    "head_search": "dit_accel_eval.heads.search:Search",
    "head_search_settings": "dit_accel_eval.heads.search:SearchSettings",
    "run_head_search": "dit_accel_eval.heads.search:run",
    "found_heads": "dit_accel_eval.heads.search:found_heads",
    "head_report": "dit_accel_eval.heads.report:report",
    "head_validate": "dit_accel_eval.heads.validate:validate",
    "evaluate": "dit_accel_eval.report:evaluate",
    "evaluation": "dit_accel_eval.runs:Evaluation",
    "parse_setting": "dit_accel_eval.settings:Setting.parse",
    "floors": "dit_accel_eval.settings:floors",
    "compare": "dit_accel_eval.compare:compare",
    "parse_target": "dit_accel_eval.tune.targets:Target.parse",
    "goal": "dit_accel_eval.tune.search:Goal",
    "tuning": "dit_accel_eval.tune.run:Tuning",
    "tune": "dit_accel_eval.tune.run:tune",
    "tuning_cost": "dit_accel_eval.tune.run:cost",
    "tuning_summary": "dit_accel_eval.tune.run:summary",
}


def load(name: str) -> Any:
    """The object a name of the table stands for.

    Raises:
        RunFailed: if its package cannot be imported.
    """
    module, attribute = UPWARD[name].split(":")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except ImportError as error:
        raise RunFailed(f"cannot import {module}: {error}; reinstall dit_accel") from error
