"""More tiny models of ComfyUI's own classes: variants with references, padding, tokens of images and other latents."""

from types import SimpleNamespace
from typing import Any

import torch
from support.comfyui_models import FLUX, WAN, build_model, hunyuan_config, keep_fields, need_class

TEXT = 7
VIDEO = torch.zeros(1, 16, 3, 8, 12)


def wan_i2v(comfy: Any) -> SimpleNamespace:
    """Return Wan with a second cross attention, over 257 tokens of an image."""
    config = comfy.supported_models.WAN21_I2V({**WAN, "model_type": "i2v", "in_dim": 36})
    vision = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280))
    return build_model(comfy, config, VIDEO, {"clip_vision_output": vision}, (TEXT, 24))


def wan_vace(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.WAN21_Vace(
        {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}
    )
    return build_model(comfy, config, VIDEO, {}, (TEXT, 24))


def wan22_5b(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.WAN22_T2V({**WAN, "in_dim": 48, "out_dim": 48})
    return build_model(comfy, config, torch.zeros(1, 48, 3, 8, 12), {}, (TEXT, 24))


def flux_kontext(comfy: Any) -> SimpleNamespace:
    """Return Flux with 24 tokens of a reference behind its 48 tokens of the image."""
    from comfy.ldm.flux.model import FluxParams

    values = keep_fields(FluxParams, {**FLUX, "in_channels": 16, "txt_ids_dims": []})
    condition = {
        "pooled_output": torch.zeros(1, 12),
        "guidance": 3.5,
        "reference_latents": [torch.randn(1, 16, 8, 12)],
    }
    config = comfy.supported_models.Flux({"image_model": "flux", **values})
    return build_model(comfy, config, torch.zeros(1, 16, 16, 12), condition, (TEXT, 20))


def flux2(comfy: Any) -> SimpleNamespace:
    """Return Flux 2, whose text is padded to 512 tokens, with 600 tokens of the image."""
    from comfy.ldm.flux.model import FluxParams

    values = {
        **FLUX,
        "vec_in_dim": None,
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "axes_dim": [4, 4, 4, 4],
        "txt_ids_dims": [3],
        "qkv_bias": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
    }
    kind = need_class(comfy, "Flux2")
    config = kind({"image_model": "flux2", **keep_fields(FluxParams, values)})
    return build_model(comfy, config, torch.zeros(1, 128, 24, 25), {}, (TEXT, 20))


def chroma(comfy: Any) -> SimpleNamespace:
    from comfy.ldm.chroma.model import ChromaParams

    values = {
        **FLUX,
        "in_channels": 64,
        "in_dim": 64,
        "out_dim": 32,
        "hidden_dim": 32,
        "n_layers": 1,
        "txt_ids_dims": [],
        "out_channels": 64,
    }
    condition = {"pooled_output": torch.zeros(1, 12)}
    config = comfy.supported_models.Chroma(
        {"image_model": "chroma", **keep_fields(ChromaParams, values)}
    )
    return build_model(comfy, config, torch.zeros(1, 16, 16, 12), condition, (TEXT, 20))


def hunyuan15(comfy: Any) -> SimpleNamespace:
    """Return HunyuanVideo 1.5 with text of two encoders."""
    kind = need_class(comfy, "HunyuanVideo15")
    config = kind(
        hunyuan_config(
            in_channels=65,
            out_channels=32,
            patch_size=[1, 1, 1],
            byt5=True,
            use_cond_type_embedding=True,
            vision_in_dim=1152,
            vec_in_dim=None,
        )
    )
    condition = {
        "pooled_output": None,
        "guidance": 6.0,
        "conditioning_byt5small": torch.randn(1, 5, 1472),
    }
    return build_model(comfy, config, torch.zeros(1, 32, 3, 4, 6), condition, (TEXT, 20))


def ltxv(comfy: Any) -> SimpleNamespace:
    config = comfy.supported_models.LTXV(
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 32,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "caption_channels": 24,
            "num_layers": 3,
        }
    )
    condition = {"frame_rate": 25, "attention_mask": torch.zeros(1, 1, 1, TEXT)}
    return build_model(comfy, config, torch.zeros(1, 128, 3, 4, 6), condition, (TEXT, 24))


def qwen(comfy: Any, **condition: Any) -> SimpleNamespace:
    config = need_class(comfy, "QwenImage")(
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        }
    )
    return build_model(comfy, config, torch.zeros(1, 16, 1, 16, 12), condition, (TEXT, 24))


def qwen_edit(comfy: Any) -> SimpleNamespace:
    """Return Qwen-Image with 24 tokens of a reference behind its 48 tokens of the image."""
    return qwen(comfy, reference_latents=[torch.randn(1, 16, 1, 8, 12)])


def lumina2(comfy: Any, **values: Any) -> SimpleNamespace:
    condition = {"attention_mask": torch.ones(1, TEXT, dtype=torch.int64)}
    config = comfy.supported_models.Lumina2(
        {
            "image_model": "lumina2",
            "in_channels": 16,
            "dim": 32,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "multiple_of": 16,
            "qk_norm": True,
            "cap_feat_dim": 24,
            "axes_dims": [4, 6, 6],
            "axes_lens": [300, 64, 64],
            **values,
        }
    )
    return build_model(comfy, config, torch.zeros(1, 16, 16, 12), condition, (TEXT, 24))


def z_image(comfy: Any) -> SimpleNamespace:
    """Return Z-Image, which pads 7 tokens of text to 32 and 48 tokens of the image to 64."""
    need_class(comfy, "ZImage")
    return lumina2(
        comfy,
        dim=256,
        n_heads=16,
        n_kv_heads=16,
        z_image_modulation=True,
        pad_tokens_multiple=32,
        time_scale=1000.0,
        rope_theta=256.0,
    )


def kandinsky5(comfy: Any) -> SimpleNamespace:
    config = need_class(comfy, "Kandinsky5")(
        {
            "image_model": "kandinsky5",
            "in_text_dim": 24,
            "in_text_dim2": 12,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "visual_embed_dim": 132,
            "num_text_blocks": 1,
            "num_visual_blocks": 3,
            "axes_dims": (4, 6, 6),
        }
    )
    condition = {"pooled_output": torch.zeros(1, 12)}
    return build_model(comfy, config, VIDEO, condition, (TEXT, 24))


def cogvideox(comfy: Any) -> SimpleNamespace:
    config = need_class(comfy, "CogVideoX_T2V")(
        {
            "image_model": "cogvideox",
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 3,
            "use_rotary_positional_embeddings": True,
        }
    )
    return build_model(comfy, config, VIDEO, {}, (TEXT, 24), spread=0.6)


VARIANTS = {
    "wan-i2v": wan_i2v,
    "wan-vace": wan_vace,
    "wan-2.2-5b": wan22_5b,
    "flux-kontext": flux_kontext,
    "flux2": flux2,
    "chroma": chroma,
    "hunyuan-1.5": hunyuan15,
    "ltxv": ltxv,
    "qwen-image": qwen,
    "qwen-edit": qwen_edit,
    "lumina2": lumina2,
    "z-image": z_image,
    "kandinsky5": kandinsky5,
    "cogvideox": cogvideox,
}
