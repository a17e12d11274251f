"""Make a video with Wan 2.1: the first fifth of the steps dense, the others sparse."""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel

model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to("cuda")
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.15))
video = pipe("a red fox in the snow", height=480, width=832, num_frames=81).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(pipe.attention_report())
