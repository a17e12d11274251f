"""Make a video with sound with LTX-2. Attention among the tokens of the video is sparse; the sound stays dense.

`encode_video` needs `pip install av`.
"""

import torch
from diffusers import LTX2Pipeline
from diffusers.utils import encode_video

import dit_accel

pipe = LTX2Pipeline.from_pretrained("Lightricks/LTX-2", dtype=torch.bfloat16)
pipe.enable_model_cpu_offload()
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.2))
video, audio = pipe(
    "a red fox barks in the snow",
    height=1024,
    width=1536,
    num_frames=121,
    output_type="np",
    return_dict=False,
)
encode_video(
    video[0],
    fps=24,
    output_path="fox.mp4",
    audio=audio[0].float().cpu(),
    audio_sample_rate=pipe.vocoder.config.output_sampling_rate,
)
print(pipe.attention_report())
