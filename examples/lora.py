"""Use a LoRA beside sparse attention. Loading and unloading work while it is enabled."""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel

model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to("cuda")
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.15))
pipe.load_lora_weights("benjamin-paine/steamboat-willie-1.3b", adapter_name="cartoon")
pipe.set_adapters("cartoon", 0.8)
video = pipe("a mouse steers a boat", height=480, width=832, num_frames=81).frames[0]
export_to_video(video, "mouse.mp4", fps=16)
print(pipe.attention_report())
pipe.unload_lora_weights()
