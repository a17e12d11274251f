"""The published settings of HeadHunter (arXiv 2506.10978v4, released code 3828d1c), by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit_accel.errors import InvalidSettings

SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
FLUX = "black-forest-labs/FLUX.1-dev"

# The released search perturbs the joint map of all tokens in all steps, one image at a time.
_SEARCH = {
    "reward": "pickscore",
    "pairing": "zip",
    "perturbation": "identity",
    "text_mode": "joint",
    "interval": (0.0, 1.0),
    "batch": 1,
}
_SD3 = {"steps": 20, "guidance_scale": 0.0, "height": 1024, "width": 1024, "dtype": "float16"}
_FLUX = {"steps": 15, "guidance_scale": 0.0, "height": 512, "width": 512, "dtype": "bfloat16"}
_STYLE = {"rounds": 5, "top_k": 3, "softness": 1.0}


@dataclass(frozen=True)
class PublishedSetting:
    """A published search.

    Attributes:
        source: Where its values are printed.
        model: Hub id of its model.
        search: Values of `SearchSettings`.
        render: Values of `RenderSettings`.
        seeds: Seeds of its prompts. None counts them from 0.
    """

    source: str
    model: str
    search: Mapping[str, Any]
    render: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None


SETTINGS = {
    "headhunter-general": PublishedSetting(
        "arXiv 2506.10978v4, section 4.1.1, appendix D.1 and table 3",
        SD3,
        {**_SEARCH, "rounds": 1, "top_k": 24, "scale": 3.0, "softness": 0.25},
        _SD3,
        seeds=(*[0] * 10, *range(10)),
    ),
    "headhunter-style": PublishedSetting(
        "arXiv 2506.10978v4, section 4.1.2, appendix D.1 and table 4; run.sh of the released code 3828d1c",
        SD3,
        {**_SEARCH, **_STYLE, "scale": 3.0},
        _SD3,
    ),
    "headhunter-style-flux": PublishedSetting(
        "arXiv 2506.10978v4, appendix D.1 and table 4; run_flux.sh of the released code 3828d1c",
        FLUX,
        {**_SEARCH, **_STYLE, "scale": 8.0},
        _FLUX,
    ),
}


def choose_seeds(pairing: str, prompts: int, setting: str | None = None) -> tuple[int, ...]:
    """Return the seeds of a search that names none: 0 for all prompts, or one for each.

    Args:
        pairing: pairing of prompts and seeds.
        prompts: number of prompts.
        setting: name of a published setting.

    Raises:
        InvalidSettings: if the setting has seeds for another number of prompts.
    """
    if pairing != "zip":
        return (0,)
    seeds = SETTINGS[setting].seeds if setting else None
    if seeds is None:
        return tuple(range(prompts))
    if len(seeds) != prompts:
        raise InvalidSettings(
            f"setting {setting} has {len(seeds)} prompts with one seed each, got {prompts} prompts: "
            f"give {len(seeds)}, or --seeds"
        )
    return seeds
