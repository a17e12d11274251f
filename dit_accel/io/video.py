"""Encode frames with ffmpeg, and check the files that it writes.

Frames are float arrays ``[H, W, 3]`` in [0, 1].
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dit_accel.errors import RunFailed
from dit_accel.extensions import require_extra
from dit_accel.io.images import to_bytes

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Codec:
    """A video encoder of ffmpeg.

    Attributes:
        encoder: Its name.
        options: Its options, as arguments of ffmpeg.
    """

    encoder: str
    options: tuple[str, ...]


H264 = Codec("libx264", ("-crf", "10"))
# Key frames are 8 frames apart, because a page seeks single frames.
VP9 = Codec("libvpx-vp9", ("-crf", "24", "-b:v", "0", "-g", "8", "-row-mt", "1"))

RAW = ("-f", "rawvideo", "-pix_fmt", "rgb24")


def require_ffmpeg() -> str:
    """Return the path of ffmpeg.

    Raises:
        RunFailed: without imageio-ffmpeg, or if it finds no ffmpeg.
    """
    require_extra("an mp4 file", "imageio", "imageio_ffmpeg", extra="video")
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise RunFailed(str(error)) from None


def require_encoder(codec: Codec) -> None:
    """Check with one black frame that ffmpeg is there and can encode.

    Raises:
        RunFailed: with what is missing.
    """
    command = [require_ffmpeg(), "-v", "error", *RAW, "-s", "64x64", "-i", "-"]
    command += [*_output_options(codec, 64, 64), "-f", "null", "-"]
    try:
        done = subprocess.run(command, input=bytes(64 * 64 * 3), capture_output=True, check=False)
    except OSError as error:
        raise RunFailed(f"cannot start ffmpeg at {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise RunFailed(
            f"ffmpeg at {command[0]} cannot encode with {codec.encoder} "
            f"({_reason(done.returncode, done.stderr)}): install an ffmpeg that has it, or unset IMAGEIO_FFMPEG_EXE"
        )


def encode_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: int,
    codec: Codec,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Encode frames to a file, and read it back.

    Colours are converted to BT.709 for HD sizes and to BT.601 for smaller ones, and tagged so, because players assume
    that. An odd height or width loses one row or column, since the colour planes have half the size.

    Args:
        path: file whose ending names the container.
        frames: at least one frame.
        fps: frames per second.
        codec: encoder.
        metadata: texts by name.

    Raises:
        OSError: if ffmpeg fails, or the file does not hold every frame.
        RunFailed: without ffmpeg.
    """
    frames = iter(frames)
    first = next(frames)
    height, width = (size - size % 2 for size in first.shape[:2])
    rate = ["-s", f"{width}x{height}", "-r", str(fps)]
    with _metadata_file(metadata or {}, path.parent) as (source, descriptors):
        command = [require_ffmpeg(), "-y", "-v", "error", *RAW, *rate, "-i", "-", *source]
        command += [*_output_options(codec, height, width), f"file:{path}"]
        even = (to_bytes(f[:height, :width]).tobytes() for f in itertools.chain([first], frames))
        with tempfile.TemporaryFile(dir=path.parent) as log:
            written = _pipe(command, even, descriptors, log)
    found = count_frames(path)
    if found != written:
        raise OSError(f"the file holds {found} of {written} frames after encoding")


def _output_options(codec: Codec, height: int, width: int) -> list[str]:
    """Return ffmpeg's options for a codec, with the colours that players assume for a size."""
    is_hd = height > 576 or width >= 1280
    matrix, tag = ("bt709", "bt709") if is_hd else ("bt601", "smpte170m")
    scale = (
        f"scale=out_color_matrix={matrix}:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
    )
    # Models make sRGB, whose primaries are those of BT.709 at every size.
    tags = f"setparams=range=tv:colorspace={tag}:color_primaries=bt709:color_trc=bt709"
    filters = ["-vf", f"{scale},format=yuv420p,{tags}"]
    return ["-an", "-c:v", codec.encoder, *codec.options, *filters]


@contextmanager
def _metadata_file(
    metadata: Mapping[str, str], folder: Path
) -> Iterator[tuple[list[str], list[int]]]:
    """Yield ffmpeg's options that read texts from an open file, and the file's descriptor.

    An argument of a program holds 128 KiB at most, a file any text.
    """
    if not metadata:
        yield [], []
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        lines = [f"{name}={_escape(text)}\n" for name, text in metadata.items()]
        file.write("".join([";FFMETADATA1\n", *lines]).encode())
        file.seek(0)
        source = ["-f", "ffmetadata", "-i", f"pipe:{file.fileno()}", "-map_metadata", "1"]
        yield [*source, "-map", "0:v"], [file.fileno()]


def _escape(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


def _pipe(
    command: Sequence[str], chunks: Iterable[bytes], descriptors: Sequence[int], log: IO[bytes]
) -> int:
    """Run a command with chunks as its input and its errors in a log, and return the number of chunks.

    Raises:
        OSError: if the command fails.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        pass_fds=tuple(descriptors),
        process_group=0,  # Ctrl-C in a terminal is for us alone
    )
    assert process.stdin is not None
    written = 0
    try:
        # A process that ended early tells why by its exit code.
        with contextlib.suppress(BrokenPipeError):
            written = _write_all(process.stdin, chunks)
    except BaseException:
        process.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    if process.returncode:
        log.seek(0)
        raise OSError(f"ffmpeg failed: {_reason(process.returncode, log.read())}")
    return written


def _write_all(stream: IO[bytes], chunks: Iterable[bytes]) -> int:
    written = 0
    for chunk in chunks:
        stream.write(chunk)
        written += 1
    stream.flush()
    return written


def _reason(code: int, log: bytes) -> str:
    """Return the last line that ffmpeg printed, or its exit code or signal if it printed none."""
    lines = log.decode(errors="replace").strip().splitlines()
    if lines:
        return lines[-1]
    if code < 0:
        return str(signal.strsignal(-code))
    # ffmpeg ends with the number of a system error, below 256.
    return os.strerror(256 - code) if code > 128 else f"exit code {code}"


def count_frames(path: Path) -> int:
    """Decode a video and return the number of its frames.

    Raises:
        OSError: if it does not decode.
    """
    command = [require_ffmpeg(), "-v", "error", "-xerror", "-i", f"file:{path}", "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-progress", "-", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"the file does not decode: {_reason(done.returncode, done.stderr)}")
    counts = re.findall(rb"^frame=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(counts[-1]) if counts else 0


def read_video_tags(path: Path) -> dict[str, str]:
    """Return all texts in a video's metadata by lower-case name.

    Raises:
        RunFailed: without ffmpeg.
    """
    command = [require_ffmpeg(), "-v", "error", "-i", f"file:{path}", "-f", "ffmetadata", "-"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise RunFailed(f"cannot start ffmpeg at {command[0]}: {error.strerror}") from None
    output = done.stdout.decode(errors="replace")
    tags = re.findall(r"^(\w+)=((?:\\.|[^\\\n])*)", output, re.MULTILINE | re.DOTALL)
    return {name.lower(): re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for name, text in tags}
