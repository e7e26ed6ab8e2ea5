"""Makes small video files for the tests of ingestion."""

import io

import av
import numpy as np


def write_video(path, frames=8, rate=8, size=(48, 32), codec="libx264"):
    """An MP4 (or what the suffix says), frame i a grey of 20 * i % 256; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(frames):
            image = np.full((size[1], size[0], 3), 20 * i % 256, np.uint8)
            image[: size[1] // 2, : size[0] // 2] = np.random.default_rng(i).integers(0, 255)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def write_picture(path, size=(48, 32)):
    """A PNG."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = *size, "rgb24"
        image = np.zeros((size[1], size[0], 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def greys(data):
    """Grey of the lower right corner of each frame: what `write_video` put there, nearly."""
    with av.open(io.BytesIO(data)) as container:
        return [int(f.to_ndarray(format="rgb24")[-2, -2].mean()) for f in container.decode(video=0)]
