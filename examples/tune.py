"""Search for the fastest settings that hold a quality with your prompts, then use them.

Every line of prompts.txt is a prompt. A third of them serves the search, and the others validate its winner.
The search needs `pip install "dit_accel[eval]"`. It writes mine.yaml, and a second run continues it.
"""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel
from dit_accel.cli import main

model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
size = ["--height", "480", "--width", "832", "--frames", "81", "--steps", "50"]
where = ["--model", model, "--device", "cuda", "--dtype", "bfloat16"]
search = ["--prompts", "prompts.txt", "--target", "psnr>=25", "--minutes", "240"]
if main(["tune", *search, *size, *where, "--out", "mine.yaml"]):
    raise SystemExit("no settings hold the target: lower it, or give more minutes")

pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to("cuda")
dit_accel.enable_acceleration(pipe, "mine.yaml")
video = pipe("a red fox in the snow", height=480, width=832, num_frames=81).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(pipe.attention_report())
