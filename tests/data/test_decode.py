"""Decoding: the right frames, no more than needed, in the right colours."""

from fractions import Fraction

import av
import numpy as np
import pytest
from loading_helpers import mp4, pictures, record

from jepa.data import decode, transforms
from jepa.nn import frames as device

FPS, GOP = 8, 12


@pytest.fixture(scope="module")
def clip():
    return mp4(pictures(60), gop=GOP)


def middle(indices):
    return (np.asarray(indices) + 0.5) / FPS


def times_decoded(monkeypatch):
    """Count the frames that leave the decoder."""
    seen = []
    step = decode._Reader._step

    def counted(self):
        found = step(self)
        if found:
            seen.append(self._begin)
        return found

    monkeypatch.setattr(decode._Reader, "_step", counted)
    return seen


def everything(clip):
    import io

    with av.open(io.BytesIO(clip)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def red_of(found):
    return [int(planes["rgb"][..., 0].mean()) for planes in found]


def test_chosen_frames_are_those_of_a_full_decode(clip):
    whole = everything(clip)
    wanted = [59, 0, 31, 31, 30, 12, 11]
    found = decode.decode_clip(clip, middle(wanted), transforms.Converter(64))
    for index, planes in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(planes["rgb"], whole[index])


@pytest.mark.parametrize(
    "keys",
    [
        {"bframes": 0},
        {"bframes": 3},
        # Pictures before a keyframe that need the one before it, and no keyframe but the first.
        {"x264": "open-gop=1:b-adapt=0"},
        {"x264": "intra-refresh=1"},
    ],
)
def test_every_single_frame_is_found_from_its_keyframe(monkeypatch, keys):
    clip = mp4(pictures(40), gop=10, **keys)
    whole = everything(clip)
    seen = times_decoded(monkeypatch)
    for index in range(40):
        seen.clear()
        (found,) = decode.decode_clip(clip, middle([index]), transforms.Converter(64))
        np.testing.assert_array_equal(found["rgb"], whole[index])
        assert len(seen) <= (10 if "bframes" in keys else 40)


def test_decoding_skips_groups_of_pictures_without_wanted_frames(monkeypatch):
    clip = mp4(pictures(60), gop=GOP, bframes=0)
    seen = times_decoded(monkeypatch)
    decode.decode_clip(clip, middle([2, 50]), transforms.Converter(64))
    # Frames 0..2, then from the keyframe 48 to 50.
    np.testing.assert_allclose(seen, np.array([0, 1, 2, 48, 49, 50]) / FPS, atol=1e-3)


def test_a_clip_between_start_and_end_shows_only_that(clip):
    part = record(0, count=60, video=clip, start=2.0, end=4.0)
    count, fps, start = decode.grid(part)
    assert (count, fps, start) == (16, 8.0, 2.0)
    times = decode.frame_times(part, np.arange(count))
    whole = everything(clip)
    found = decode.decode_clip(clip, times, transforms.Converter(64))
    np.testing.assert_array_equal([p["rgb"] for p in found], whole[16:32])


def test_an_end_behind_the_video_is_cut(clip):
    assert decode.grid(record(0, count=60, video=clip, start=7.0, end=99.0))[0] == 4


@pytest.mark.parametrize("suffix", ["webm", "matroska", "mpegts"])
def test_other_containers(suffix):
    import io

    codec = "libvpx" if suffix == "webm" else "libx264"
    data = io.BytesIO()
    with av.open(data, "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width = stream.height = 64
        stream.options = {"g": "12", "crf": "10", "b": "2M"}
        for picture in pictures(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    whole = everything(data.getvalue())
    wanted = [0, 5, 33, 39]
    found = decode.decode_clip(data.getvalue(), middle(wanted), transforms.Converter(64))
    np.testing.assert_array_equal([p["rgb"] for p in found], whole[wanted])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no video at all" * 50,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-200],
    ],
)
def test_damaged_bytes_are_a_decode_error(clip, damage):
    with pytest.raises(decode.DecodeError):
        decode.decode_clip(damage(clip), middle([0, 59]), transforms.Converter(64))


def test_a_video_shorter_than_its_record_is_a_decode_error(clip):
    with pytest.raises(decode.DecodeError, match="ends at 7.5"):
        decode.decode_clip(clip, middle([80]), transforms.Converter(64))
    # Rounding of rates may ask for a frame too many; the last one stands for it.
    last = decode.decode_clip(clip, middle([59, 60]), transforms.Converter(64))
    assert last[0] is last[1]


def test_sound_alone_is_a_decode_error():
    import io

    data = io.BytesIO()
    with av.open(data, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(decode.DecodeError):
        decode.decode_clip(data.getvalue(), [0.0], transforms.Converter(64))


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
def test_an_image_is_a_clip_of_one_frame(codec):
    picture = pictures(3)[1]
    context = av.CodecContext.create(codec, "w")
    context.width = context.height = 64
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
    if codec == "mjpeg":
        frame = frame.reformat(format="yuvj444p", dst_colorspace=5, dst_color_range=2)
    data = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    image = record(0, video=data, count=1, media="image", fps=0.0)
    assert decode.grid(image)[0] == 1
    times = decode.frame_times(image, np.zeros(4, int))
    found = decode.decode_clip(data, times, transforms.Converter(64))
    assert len(found) == 4
    difference = np.abs(found[3]["rgb"].astype(int) - picture)
    assert difference.max() <= (0 if codec == "png" else 12)


def on_device(planes):
    y, uv = planes["y"][None, None], planes["uv"][None, None]
    return np.asarray(device.yuv_to_rgb(np.asarray(y), np.asarray(uv)))[0, 0] * 255


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("size", [64, 32])
def test_both_kinds_of_pixels_show_the_colours_that_were_encoded(matrix, full_range, size):
    shown = pictures(8)
    clip = mp4(shown, matrix=matrix, full_range=full_range, crf=2)
    times = middle([1, 6])
    rgb = decode.decode_clip(clip, times, transforms.Converter(size, "rgb"))
    yuv = decode.decode_clip(clip, times, transforms.Converter(size, "yuv420"))
    for index, one, other in zip([1, 6], rgb, yuv, strict=True):
        original = shown[index].reshape(size, 64 // size, size, 64 // size, 3).mean((1, 3))
        # Another matrix would be off by 8 and more, another range by 10.
        assert np.abs(one["rgb"] - original).mean() < 3
        assert np.abs(on_device(other) - original).mean() < 3
        assert np.abs(on_device(other) - one["rgb"]).mean() < 2
        assert np.abs(on_device(other) - one["rgb"]).max() < 8


def test_a_wide_frame_is_cut_in_its_centre():
    wide = np.zeros((2, 64, 128, 3), np.uint8)
    wide[:, :, 32:96] = 200
    for pixels in ("rgb", "yuv420"):
        convert = transforms.Converter(32, pixels)
        (found,) = decode.decode_clip(mp4(wide), [0.0], convert)
        bright = found["rgb"][..., 0] if pixels == "rgb" else found["y"]
        assert bright.shape == (32, 32)
        assert bright[:, 2:-2].min() > 150


def test_odd_sizes_decode_to_even_ones():
    odd = np.full((65, 51, 3), 90, np.uint8)
    frame = av.VideoFrame.from_ndarray(odd, "rgb24")
    native = transforms.native(frame)
    assert native["y"].shape == (64, 50) and native["uv"].shape == (32, 25, 2)
    assert transforms.Converter(16, "yuv420")(frame)["uv"].shape == (8, 8, 2)
    assert abs(int(transforms.Converter(16)(frame)["rgb"].mean()) - 90) <= 2


class Turned:
    """A frame that asks to be shown turned; PyAV cannot write that side data."""

    def __init__(self, frame, rotation):
        self._frame, self.rotation = frame, rotation

    def __getattr__(self, name):
        return getattr(self._frame, name)


@pytest.mark.parametrize("pixels", ["rgb", "yuv420"])
def test_a_rotated_video_is_turned_upright(monkeypatch, pixels):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255  # bright on the right; a quarter turn counterclockwise lifts it up
    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
    scale = transforms._scale
    monkeypatch.setattr(
        transforms, "_scale", lambda f, *rest: scale(getattr(f, "_frame", f), *rest)
    )
    found = transforms.Converter(64, pixels)(Turned(frame, 90))
    luma = found["rgb"][..., 0] if pixels == "rgb" else found["y"]
    assert luma[:32].min() > 200 and luma[32:].max() < 40
    cropped = transforms.Converter(16, pixels, transforms.Box(0, 0, 0.5, 1))(Turned(frame, 90))
    assert min(cropped["rgb" if pixels == "rgb" else "y"].ravel()) > 200
