"""Every way in which a video can be bad is found by decoding it, and said."""

import io

import av
import numpy as np
import pytest
from PIL import Image
from video_files import greys, write_picture, write_video

from jepa.data.transcode import transcode
from jepa.data.verify import BadVideo, verify


def test_what_is_said_of_a_good_video(tmp_path):
    info = verify(write_video(tmp_path / "a.mp4", frames=12, rate=6, size=(50, 34)))
    assert (info.media, info.codec, info.colour_range) == ("video", "h264", "tv")
    assert (info.width, info.height, info.frames, info.fps) == (50, 34, 12, 6.0)
    assert info.duration == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx"), ("mkv", "mpeg4")])
def test_other_containers(tmp_path, suffix, codec):
    info = verify(write_video(tmp_path / f"a.{suffix}", codec=codec))
    assert (info.frames, info.fps) == (8, 8.0)


def test_a_picture_is_an_image(tmp_path):
    info = verify(write_picture(tmp_path / "a.png"))
    assert (info.media, info.frames, info.fps, info.duration) == ("image", 1, 0.0, 0.0)
    assert info.colour_range == "pc"


def test_truncated_pictures_are_found():
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(file, "JPEG")
    data = file.getvalue()
    assert verify(data).codec == "mjpeg"
    with pytest.raises(BadVideo, match="cannot be decoded"):
        verify(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("form", "mode", "options", "after"),
    [
        ("JPEG", "RGB", {"progressive": True, "restart_marker_rows": 1}, b""),
        ("JPEG", "CMYK", {"comment": b"of a scanner"}, b"\0\r\n\xff"),
        ("JPEG", "L", {}, b"ftypmp42" * 99),  # as phones put a video behind
        ("MPO", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]}, b""),
        ("PNG", "RGBA", {}, b"\r\n"),
        ("WEBP", "RGB", {}, bytes(9)),
        ("TIFF", "RGB", {}, b""),  # with tags of EXIF, which FFmpeg cannot all read
    ],
)
def test_whole_pictures_of_unusual_kinds_are_good(form, mode, options, after):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010E] = 6, "rotated"
    noise = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(file, form, exif=exif, **options)
    info = verify(file.getvalue() + after)
    assert (info.media, info.width, info.height, info.frames) == ("image", 61, 45, 1)


def test_a_video_of_one_frame_is_a_video(tmp_path):
    assert verify(write_video(tmp_path / "a.mp4", frames=1)).media == "video"


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_truncated_videos_are_found(tmp_path, part):
    # The index is in front, so that the file still opens.
    data = write_video(tmp_path / "a.mp4", frames=40)
    with pytest.raises(BadVideo, match="truncated|cannot be decoded|damaged|no frame"):
        verify(data[: int(len(data) * part)])


def test_a_truncated_matroska_file_is_found(tmp_path):
    data = write_video(tmp_path / "a.mkv", frames=60)
    with pytest.raises(BadVideo, match="truncated|cannot be decoded|damaged|no frame"):
        verify(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "empty"), (b"not a video" * 50, "cannot be decoded")]
)
def test_what_is_no_video(data, words):
    with pytest.raises(BadVideo, match=words):
        verify(data)


def test_sound_only(tmp_path):
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(BadVideo, match="no video stream"):
        verify(path.read_bytes())


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, range(8)),
        (0.25, 0.75, range(2, 6)),
        (0.5, None, range(4, 8)),
        (0.25, 9.0, range(2, 8)),
    ],
)
def test_transcoding_cuts_where_it_is_told(tmp_path, start, end, expected):
    data = transcode(write_video(tmp_path / "a.mp4"), 16, start, end)
    info = verify(data)
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 24, 16, 8.0)
    np.testing.assert_allclose(greys(data), [20 * i for i in expected], atol=6)


def test_transcoding_never_enlarges_and_is_deterministic(tmp_path):
    source = write_video(tmp_path / "a.mp4")
    assert verify(transcode(source, 256)).height == 32
    assert transcode(source, 16) == transcode(source, 16)


def test_transcoding_nothing(tmp_path):
    source = write_video(tmp_path / "a.mp4")
    with pytest.raises(BadVideo, match="no frame between 5.0"):
        transcode(source, 16, 5.0)
    with pytest.raises(BadVideo, match="cannot be transcoded"):
        transcode(b"no video", 16)
