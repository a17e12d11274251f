"""Make a video with Wan 2.2: its two transformers get rules of their own.

The first one, `transformer`, makes the steps with much noise and keeps more pairs of query and key.
"""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel

model = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
schedule = dit_accel.Schedule(
    dense_steps=0.1,
    rules=(
        dit_accel.Rule(expert="transformer", knobs={"density": 0.25}),
        dit_accel.Rule(expert="transformer_2", knobs={"density": 0.15}),
    ),
)
pipe.enable_sparse_attention("svg-ear", schedule=schedule)
video = pipe("a red fox in the snow", height=480, width=832, num_frames=81).frames[0]
export_to_video(video, "fox.mp4", fps=16)
print(pipe.attention_report())
