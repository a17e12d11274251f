"""Tiny random models of ComfyUI's own classes, and its sampler. Only a process with a ComfyUI can call these."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dit_accel.comfyui import native_nodes
from dit_accel.comfyui.sparse_override import SparseOverride

STEPS, SEED = 2, 1


def wan(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.WAN21_T2V(dict(WAN))
    return build_model(comfy, config, torch.zeros(1, 16, 3, 8, 12), {}, (7, 24))


def flux(comfy: Any) -> SimpleNamespace:
    from comfy.ldm.flux.model import FluxParams

    values = {**FLUX, "in_channels": 16, "txt_ids_dims": []}
    config = comfy.supported_models.Flux({"image_model": "flux", **keep_fields(FluxParams, values)})
    condition = {"pooled_output": torch.zeros(1, 12), "guidance": 3.5}
    return build_model(comfy, config, torch.zeros(1, 16, 16, 12), condition, (7, 20))


def hunyuan(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.HunyuanVideo(hunyuan_config(in_channels=16))
    condition = {"pooled_output": torch.zeros(1, 12), "guidance": 6.0}
    return build_model(comfy, config, torch.zeros(1, 16, 3, 8, 12), condition, (7, 20))


def hunyuan_config(**changes: Any) -> dict[str, Any]:
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    values = {
        **FLUX,
        "patch_size": [1, 2, 2],
        "theta": 256,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
        **changes,
    }
    return {"image_model": "hunyuan_video", **keep_fields(HunyuanVideoParams, values)}


def ltx_av(comfy: Any) -> SimpleNamespace:
    """Return LTX-2 with 72 tokens of video and 20 of sound, which is more than 72 / 4."""
    config = need_class(comfy, "LTXAV")(
        {
            "image_model": "ltxav",
            "cross_attention_dim": 32,
            "audio_cross_attention_dim": 16,
            "attention_head_dim": 16,
            "audio_attention_head_dim": 8,
            "num_attention_heads": 2,
            "audio_num_attention_heads": 2,
            "caption_channels": 24,
            "num_layers": 3,
        }
    )
    latent = nest(torch.zeros(1, 128, 3, 4, 6), torch.zeros(1, 8, 20, 16))
    return build_model(comfy, config, latent, {"frame_rate": 25}, (7, 48))


def minimax_h3(comfy: Any) -> SimpleNamespace:
    """Return MiniMax-H3, which packs 7 tokens of text, 22 of sound and 72 of video into one sequence."""
    config = need_class(comfy, "MiniMaxH3")(
        {
            "image_model": "minimax_h3",
            "hidden_size": 32,
            "num_layers": 3,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "ffn_hidden_size": 32,
            "text_dim": 24,
            "timestep_input_dim": 16,
            "time_embed_hidden_size": 32,
            "time_embed_dim": 16,
            "rope_inv_freq_len": 2,
        }
    )
    latent = nest(torch.zeros(1, 24, 3, 8, 12), torch.zeros(1, 32, 2, 11))
    model = build_model(comfy, config, latent, {}, (7, 24), spread=0.45)
    model.patcher.model.diffusion_model.rope.inv_freq.copy_(torch.tensor([1.0, 0.1]))
    return model


def need_class(comfy: Any, name: str) -> Any:
    """Return a class of model configurations. The test is skipped if this ComfyUI is older than it."""
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    return getattr(comfy.supported_models, name)


def keep_fields(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that a dataclass has, because newer versions of ComfyUI have more."""
    return {
        field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values
    }


def nest(*streams: torch.Tensor) -> Any:
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(streams)


WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 32,
    "ffn_dim": 32,
    "freq_dim": 16,
    "text_dim": 24,
    "num_heads": 2,
    "num_layers": 3,
    "in_dim": 16,
    "out_dim": 16,
}
FLUX = {
    "out_channels": 16,
    "vec_in_dim": 12,
    "context_in_dim": 20,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}
FAMILIES = {
    "wan": wan,
    "flux": flux,
    "hunyuan": hunyuan,
    "ltx-av": ltx_av,
    "minimax-h3": minimax_h3,
}


def build_model(
    comfy: Any,
    config: Any,
    latent: Any,
    condition: dict,
    text: tuple[int, int],
    spread: float = 0.15,
) -> SimpleNamespace:
    """Return a model with random weights of a standard deviation, and its inputs for sampling."""
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(base, cpu, cpu)
    texts = [torch.randn(1, *text, generator=generator) for _ in range(2)]
    conditions = [[[t, dict(condition)]] for t in texts]
    return SimpleNamespace(comfy=comfy, patcher=patcher, latent=latent, conditions=conditions)


def patch_attention(patcher: Any, method: str = "svg2", knobs: str = "top_p=1") -> Any:
    """Return a model with the node for sparse attention, in all steps and for any number of tokens."""
    return native_nodes.patch_attention(patcher, method, knobs, "full", 0.0, 1.0, 0, "")[0]


def patch_guidance(patcher: Any, layers: str = "1") -> Any:
    """Return a model with the node for guidance, in all steps."""
    return native_nodes.patch_guidance(patcher, 2.0, layers, 1.0, 0.0, 1.0, 0.0)[0]


def find_override(wrapper: Any) -> SparseOverride:
    """Return the override of a wrapper, from its closure."""
    values = [cell.cell_contents for cell in wrapper.__closure__]
    owners = [getattr(value, "__self__", None) for value in values]
    return next(owner for owner in owners if isinstance(owner, SparseOverride))


def only_override(patcher: Any) -> SparseOverride:
    """Return the override of a patched model."""
    (wrapper,) = patcher.wrappers["apply_model"]["dit_accel"]
    return find_override(wrapper)


def sample(
    model: SimpleNamespace, patcher: Any, cfg: float = 3.0, *, steps: int = STEPS
) -> torch.Tensor:
    """Sample a latent with ComfyUI's own sampler. Streams that were packed come back as one row of numbers."""
    noise = model.comfy.sample.prepare_noise(model.latent, SEED)
    latent = model.comfy.sample.sample(
        *(patcher, noise, steps, cfg, "euler", "simple", *model.conditions, model.latent),
        disable_pbar=True,
        seed=SEED,
    )
    if getattr(latent, "is_nested", False):
        return torch.cat([stream.flatten() for stream in latent.unbind()])
    return latent
