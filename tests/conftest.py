"""Shared by all tests: a tiny random Wan pipeline, and memory that is never zero by luck."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from support.composition import Case, document
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import dit_accel.runtime.cost_model
from dit_accel.cli import messages
from dit_accel_assets import tiny_world_path

OUTCOMES = pytest.StashKey[dict[Case, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run tests marked slow")
    parser.addoption(
        "--comfyui", type=Path, help="a ComfyUI checkout, for the tests that run in it"
    )
    parser.addoption("--matrix", type=Path, help="write the composition matrix as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    path, outcomes = session.config.getoption("--matrix"), session.config.stash[OUTCOMES]
    if path and outcomes:
        path.write_text("\n".join(document(outcomes)) + "\n")


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> dict[Case, str]:
    """Where the tests of the composition matrix leave what they found."""
    return request.config.stash[OUTCOMES]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="slow: run `make test-all`"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Fill new memory with NaN, keep diffusers' process-wide backend as it was, and know no machine's rates:
    tiny models cannot pay, and say so. A slow start prints no line, because tests count lines.
    """
    patience, messages.PATIENCE = messages.PATIENCE, math.inf
    shipped, dit_accel.runtime.cost_model.shipped_rates = (
        dit_accel.runtime.cost_model.shipped_rates,
        lambda: Path("none"),
    )
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    backend = _AttentionBackendRegistry._active_backend
    yield
    messages.PATIENCE = patience
    dit_accel.runtime.cost_model.shipped_rates = shipped
    _AttentionBackendRegistry._active_backend = backend
    torch.use_deterministic_algorithms(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = "<pad> </s> <unk> a red blue circle square moving left right up on black".split()  # noqa: SIM905
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
    )


def random_wan(seed: int = 0, two_transformers: bool = False) -> WanPipeline:
    """A random Wan pipeline: 3 layers, 2 heads of 16, frames of 8 x 8 pixels a latent."""
    torch.manual_seed(seed)
    text = UMT5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    wan = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 8,
        "out_channels": 8,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 64,
    }
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
    )
    pipe = WanPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=vae.eval(),
        transformer=WanTransformer3DModel(**wan).eval(),
        transformer_2=WanTransformer3DModel(**wan).eval() if two_transformers else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        boundary_ratio=0.9 if two_transformers else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def build_wan() -> Callable[..., WanPipeline]:
    """Makes random Wan pipelines: ``build_wan(seed, two_transformers=False)``."""
    return random_wan


@pytest.fixture
def wan() -> WanPipeline:
    return random_wan()


@pytest.fixture
def run_wan() -> Callable[..., torch.Tensor]:
    """Run a Wan pipeline for 4 steps at 96 tokens; returns latents ``[B, C, F, H, W]``."""

    def run(
        pipe: WanPipeline, prompt: object = "a red circle", seed: int = 0, **kw: object
    ) -> torch.Tensor:
        arguments = {
            "height": 64,
            "width": 64,
            "num_frames": 21,
            "num_inference_steps": 4,
            "guidance_scale": 4.0,
            "max_sequence_length": 16,
            "output_type": "latent",
            **kw,
        }
        generator = torch.Generator().manual_seed(seed)
        return pipe(prompt, generator=generator, **arguments).frames

    return run


@pytest.fixture(scope="session")
def tiny_world() -> WanPipeline:
    """The bundled model; tests leave it as they found it."""
    pipe = WanPipeline.from_pretrained(tiny_world_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe
