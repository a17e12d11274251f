"""Serve videos over HTTP on this machine: `curl -G localhost:8000 -d "prompt=a red fox" -o fox.mp4`.

A pipeline takes one call at a time, because its scheduler holds the state of one run. So requests share one lock.
"""

import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

import dit_accel

model = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
pipe = WanPipeline.from_pretrained(model, dtype=torch.bfloat16).to("cuda")
pipe.enable_sparse_attention(dit_accel.SVGEar(density=0.15))
lock = threading.Lock()


def make_video(prompt: str) -> bytes:
    """Return an MP4 file. The lock is held during the call and the report, which is that of the last call."""
    with lock:
        video = pipe(prompt, height=480, width=832, num_frames=81).frames[0]
        print(pipe.attention_report())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        export_to_video(video, str(path), fps=16)
        return path.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """Answers GET /?prompt=TEXT."""

    def do_GET(self) -> None:
        prompt = parse_qs(urlsplit(self.path).query).get("prompt")
        if not prompt:
            self.send_error(400, "give ?prompt=TEXT")
            return
        content = make_video(prompt[0])
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


server = ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
if __name__ == "__main__":
    server.serve_forever()
