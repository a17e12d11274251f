"""Make a video that begins with the image start.png."""

import torch
from diffusers import WanImageToVideoPipeline
from diffusers.utils import export_to_video, load_image

import dit_accel

model = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
pipe = WanImageToVideoPipeline.from_pretrained(model, dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.2))
image = load_image("start.png").resize((832, 480))
video = pipe(image, "the fox looks up", height=480, width=832, num_frames=81).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(pipe.attention_report())
