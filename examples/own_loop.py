"""Denoise in a loop of your own: a bare transformer, whose step and branch are named by diffusers' `cache_context`."""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel

model, device = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "cuda"
height, width, num_frames, num_steps, scale = 480, 832, 81, 50, 5.0
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to(device)
transformer, scheduler, vae = pipe.transformer, pipe.scheduler, pipe.vae
session = dit_accel.enable_sparse_attention(transformer, dit_accel.SVGEar(density=0.15))

with torch.no_grad():
    texts = pipe.encode_prompt("a red fox in the snow", "blurry", device=device)
    channels = transformer.config.in_channels
    latents = pipe.prepare_latents(1, channels, height, width, num_frames, torch.float32, device)
    scheduler.set_timesteps(num_steps, device=device)
    for i, timestep in enumerate(scheduler.timesteps):
        noise = {}
        for branch, text in zip(("cond", "uncond"), texts, strict=True):
            with transformer.cache_context(branch, step_index=i, num_inference_steps=num_steps):
                noise[branch] = transformer(
                    hidden_states=latents.to(transformer.dtype),
                    timestep=timestep[None],
                    encoder_hidden_states=text.to(transformer.dtype),
                    return_dict=False,
                )[0]
        guided = noise["uncond"] + scale * (noise["cond"] - noise["uncond"])
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    frames = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]

export_to_video(pipe.video_processor.postprocess_video(frames)[0], "fox.mp4", fps=16)
print(session.report())
dit_accel.disable_sparse_attention(transformer)
