"""Sound files in every format of the allow-list, and what is refused. Files are made on the spot."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tianquan.errors import MediaError
from tianquan.processing.media import load_image, load_waveform, sniff

MEDIA = Path(__file__).parents[1] / "conformance" / "media"
MAX_PIXELS = 100_000_000
RATE = 16_000


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    ramp[: height // 2, :, 1] = 0
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def tone(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    samples = (8000 * np.sin(2 * np.pi * 440 * time) * (1 - time / seconds / 2)).astype(np.int16)
    return np.repeat(samples[:, None], channels, axis=1)


def encoded(
    container: str, codec: str, rate: int = 44_100, channels: int = 1, seconds: float = 2.0, **options: str
) -> bytes:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    rate = 48_000 if codec == "libopus" else rate  # the one it resamples everything to
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
        packed = tone(rate, seconds, channels).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        frame_size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            if piece is not None:
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def video(container: str = "mp4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        codec = {"mp4": "mpeg4", "matroska": "mpeg4"}[container]
        pictures = output.add_stream(codec, rate=10)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=RATE, layout="mono")
        for value in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), format="rgb24")
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
        silence.sample_rate = RATE
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    return file.getvalue()


# Sound ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("container", "codec", "rate", "channels", "kind"),
    [
        ("wav", "pcm_s16le", 8_000, 1, "wav"),
        ("wav", "pcm_f32le", 48_000, 2, "wav"),
        ("wav", "pcm_u8", 11_025, 1, "wav"),
        ("wav", "pcm_s24le", 44_100, 6, "wav"),
        ("wav", "pcm_mulaw", 8_000, 1, "wav"),
        ("flac", "flac", 44_100, 2, "flac"),
        ("mp3", "libmp3lame", 44_100, 2, "mpeg"),
        ("mp3", "libmp3lame", 22_050, 1, "mpeg"),
        ("ogg", "libopus", 48_000, 1, "ogg"),
        ("ogg", "vorbis", 44_100, 2, "ogg"),
        ("mp4", "aac", 44_100, 2, "mp4"),
        ("ipod", "alac", 44_100, 1, "mp4"),
        ("adts", "aac", 16_000, 1, "aac"),
        ("webm", "libopus", 48_000, 2, "webm"),
        ("matroska", "pcm_s16le", 16_000, 1, "webm"),
    ],
)
def test_every_sound_format_opens(container, codec, rate, channels, kind, capfd, tmp_path):
    data = encoded(container, codec, rate, channels)
    assert sniff(data) == f"audio/{kind}"
    waveform = load_waveform(data, 60)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 2 * RATE) <= 2 * 2048 * RATE // rate  # codecs add up to two frames
    expected = tone(RATE, 2.0)[:, 0] / 32768
    spectrum = np.abs(np.fft.rfft(waveform[:RATE]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(expected**2)), rel=0.08)
    path = tmp_path / "clip"
    path.write_bytes(data)
    assert (load_waveform(path, 60) == waveform).all()
    assert capfd.readouterr() == ("", "")


def test_16k_mono_wav_is_bit_exact():
    with wave.open(str(MEDIA / "speech_16k.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert (load_waveform(MEDIA / "speech_16k.wav", 60) == samples / np.float32(32768)).all()
    extremes = np.array([-32768, 32767, 0, 1, -1] * 100, np.int16)
    assert (load_waveform(wav(extremes), 60) * 32768 == extremes).all()


def test_mp3_of_the_same_speech():
    exact = load_waveform(MEDIA / "sample_16k.wav", 60)
    mp3 = load_waveform(MEDIA / "sample_audio.mp3", 60)
    length = min(len(exact), len(mp3))
    assert abs(len(exact) - len(mp3)) < RATE // 10
    assert np.corrcoef(exact[:length], mp3[:length])[0, 1] > 0.98


@pytest.mark.parametrize(
    ("container", "codec", "kind"), [("mp3", "libmp3lame", "mpeg"), ("flac", "flac", "flac"), ("adts", "aac", "aac")]
)
@pytest.mark.parametrize("tag_len", [32, 20_000])
def test_id3_tag_in_front(container, codec, kind, tag_len):
    size = bytes([tag_len >> 21 & 127, tag_len >> 14 & 127, tag_len >> 7 & 127, tag_len & 127])
    plain = encoded(container, codec, id3v2_version="0") if container == "mp3" else encoded(container, codec)
    tagged = b"ID3\x03\x00\x00" + size + bytes(tag_len) + plain
    assert sniff(tagged) == f"audio/{kind}"
    assert (load_waveform(tagged, 60) == load_waveform(plain, 60)).all()


def test_tags_that_are_not_utf8():
    data = encoded("wav", "pcm_s16le", RATE)
    info = b"INFOINAM" + struct.pack("<I", 4) + "歌曲".encode("gbk")
    chunk = b"LIST" + struct.pack("<I", len(info)) + info
    data = data[:12] + chunk + data[12:]
    assert len(load_waveform(data[:4] + struct.pack("<I", len(data) - 8) + data[8:], 60)) == 2 * RATE


def test_cover_art_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as output:
        sound = output.add_stream("libmp3lame", rate=RATE, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
        clip = av.AudioFrame.from_ndarray(tone(RATE, 1.0).reshape(1, -1), format="s16", layout="mono")
        clip.sample_rate = RATE
        output.mux(sound.encode(clip))
        output.mux(sound.encode(None))
    assert abs(len(load_waveform(file.getvalue(), 60)) - RATE) < 2000


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_video_is_not_sound(container):
    with pytest.raises(MediaError, match="this is a video; expected sound; extract") as caught:
        load_waveform(video(container), 60)
    assert "give it as a video" not in str(caught.value)


def test_length_cap_while_decoding():
    hour = encoded("ogg", "libopus", 48_000, seconds=60.0, b="6000")
    with pytest.raises(MediaError, match="longer than the cap of 10 s"):
        load_waveform(hour, 10)
    assert len(load_waveform(wav(np.zeros(10 * RATE)), 10)) == 10 * RATE
    with pytest.raises(MediaError):
        load_waveform(wav(np.zeros(10 * RATE + 1)), 10)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_absurd_sample_rates_are_refused(rate):
    with pytest.raises(MediaError):
        load_waveform(wav(np.zeros(4000), rate), 3600)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e5, -17.0])
@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_float_samples_that_are_no_sound(value, kind, tmp_path):
    samples = np.zeros(4000, kind)
    samples[3000] = value
    width = samples.itemsize
    head = struct.pack("<HHIIHH", 3, 1, RATE, RATE * width, width, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", samples.nbytes)
    path = tmp_path / "float.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + samples.nbytes) + body + samples.tobytes())
    with pytest.raises(MediaError, match=r"^float\.wav: .*(NaN or infinity|full scale at 1)"):
        load_waveform(path, 60)


@pytest.mark.parametrize("field", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_written_to_a_pipe(field):
    data = wav(tone(RATE, 1.0)[:, 0])
    unknown = struct.pack("<I", field)
    piped = data[:4] + unknown + data[8:40] + unknown + data[44:]
    assert len(load_waveform(piped, 60)) == RATE


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("mp4", "aac"), ("webm", "libopus")],
)
def test_cut_files_are_refused(container, codec):
    data = encoded(container, codec)
    for share in (0.03, 0.5, 0.8):
        with pytest.raises(MediaError):
            load_waveform(data[: int(share * len(data))], 60)


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("adts", "aac"), ("mp4", "aac")])
def test_a_small_damage_is_skipped_and_a_large_one_refused(container, codec):
    data = encoded(container, codec, seconds=6.0)
    middle = len(data) // 2
    damaged = bytearray(data)
    damaged[middle : middle + 64] = b"\x55" * 64
    assert len(load_waveform(bytes(damaged), 60)) > 5.5 * RATE
    damaged[middle : middle + len(data) // 4] = np.random.default_rng(0).bytes(len(data) // 4)
    with pytest.raises(MediaError):
        load_waveform(bytes(damaged), 60)


@pytest.mark.parametrize("container", ["ogg", "webm"])
def test_a_lost_page_is_not_silently_dropped(container):
    data = bytearray(encoded(container, "libopus", 48_000, seconds=6.0))
    data[len(data) // 2 : len(data) // 2 + 400] = b"\x55" * 400
    with pytest.raises(MediaError, match="of the stated"):
        load_waveform(bytes(data), 60)


def test_layout_change_inside_a_file():
    chained = encoded("mp3", "libmp3lame", RATE, 1, 1.0) + encoded("mp3", "libmp3lame", 44_100, 2, 1.0)
    assert abs(len(load_waveform(chained, 60)) - 2 * RATE) < 2500


def test_decoding_leaves_nothing_behind():
    # PyAV up to 17.0 leaks a message with each error, also those that only say that there is no output yet.
    data = encoded("mp3", "libmp3lame", 44_100, 2, 5.0)
    load_waveform(data, 60)
    before = sys.getallocatedblocks()
    for _ in range(10):
        load_waveform(data, 60)
    assert sys.getallocatedblocks() - before < 100  # of 1900 frames


def test_bytes_that_only_look_like_packets_are_given_up_soon():
    empty_frame = bytes.fromhex("fff15040011ffcff")  # the header of an AAC frame, and one byte of it
    with pytest.raises(MediaError, match="damaged"):
        load_waveform(empty_frame * 10_100, 60)


def test_file_with_a_custom_channel_layout_does_not_crash():
    # PyAV 17.1 to 18.1 frees such a layout twice and aborts; in a process of its own so that pytest survives.
    data = bytearray(encoded("mov", "pcm_s16le", RATE, 2, 0.5))
    at = data.index(b"chan") - 4
    old_len = struct.unpack(">I", data[at : at + 4])[0]
    labels = b"".join(struct.pack(">IIfff", label, 0, 0, 0, 0) for label in (2, 1))  # right, then left
    body = b"chan" + struct.pack(">IIII", 0, 0, 0, 2) + labels
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"sowt"):
        box = data.index(name) - 4
        size = struct.unpack(">I", data[box : box + 4])[0]
        data[box : box + 4] = struct.pack(">I", size + 4 + len(body) - old_len)
    data[at : at + old_len] = struct.pack(">I", 4 + len(body)) + body
    code = (
        "import sys; from tianquan.errors import MediaError; from tianquan.processing.media import load_waveform\n"
        "data = sys.stdin.buffer.read()\n"
        "for _ in range(10):\n"
        "    try: print(len(load_waveform(data, 60)))\n"
        "    except MediaError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-200:]
    assert set(done.stdout.split()) <= {b"8000", b"refused"}


# Refusals of both -------------------------------------------------------------------------------------------
JPEG_2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100)


@pytest.mark.parametrize("load", [load_image, load_waveform])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text\n" * 10, "not known here"),
        (b"\xff\xfeh\x00i\x00", "not known here"),  # UTF-16 text starts like an MPEG frame
        (JPEG_2000, "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(50), "JPEG 2000"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(50), "AVIF"),
        (b"II*\0" + bytes(50), "TIFF"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "AVI video"),
        (b"#EXTM3U\nhttp://example.org/a.mp3\n", "not known here"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not known here"),
        (b"\x89PN", "not known here"),
    ],
)
def test_what_is_neither_picture_nor_sound(load, data, message):
    with pytest.raises(MediaError, match=message) as caught:
        load(data, 100)
    assert "\n" not in str(caught.value)
    assert "convert it first" in str(caught.value) or not data


def test_sound_as_picture_and_picture_as_sound():
    with pytest.raises(MediaError, match="the file is WAV; expected a picture"):
        load_image(wav(np.zeros(100)), MAX_PIXELS)
    with pytest.raises(MediaError, match="the file is PNG; expected sound"):
        load_waveform(saved(picture(), "PNG"), 60)


@pytest.mark.parametrize("load", [load_image, load_waveform])
def test_paths_that_lead_to_no_file(load, tmp_path):
    with pytest.raises(MediaError, match=r"^missing\.bin: there is no such file"):
        load(tmp_path / "missing.bin", 100)
    with pytest.raises(MediaError, match="this is a folder"):
        load(tmp_path, 100)
    for name in ("a" * 5000, "zero\0byte", "line\nfeed"):
        with pytest.raises(MediaError) as caught:
            load(tmp_path / name, 100)
        assert len(str(caught.value)) < 200
        assert str(caught.value).isprintable()
        assert str(tmp_path) not in str(caught.value)


def test_a_palette_picture_without_palette():
    data = saved(Image.new("P", (9, 9)), "PNG")
    at = data.index(b"PLTE") - 4
    length = struct.unpack(">I", data[at : at + 4])[0]
    with pytest.raises(MediaError, match="damaged"):
        load_image(data[:at] + data[at + 12 + length :], 10_000)


@pytest.mark.parametrize(
    "head", [b"fLaC", b"OggS", b"\x1a\x45\xdf\xa3", b"ID3\3\0\0\0\0\0\0", b"\0\0\0\x18ftypM4A ", b"\xff\xfb\x90\x00"]
)
@pytest.mark.parametrize("rest", [b"", bytes(3000), bytes(range(256)) * 20])
def test_right_signature_wrong_content(head, rest, capfd):
    with pytest.raises(MediaError) as caught:
        load_waveform(head + rest, 60)
    assert "Error" not in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "adpcm_ms"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("ogg", "vorbis"),
        ("mp4", "aac"),
        ("webm", "libopus"),
    ],
)
def test_damaged_sound_gives_sound_or_a_media_error(container, codec):
    random = np.random.default_rng(2)
    data = encoded(container, codec, seconds=0.5, channels=2 if codec == "vorbis" else 1)
    for _ in range(25):
        bytes_ = bytearray(data)
        for place in random.integers(0, min(len(data), 2000), 4):
            bytes_[place] = random.integers(256)
        with contextlib.suppress(MediaError):
            assert np.isfinite(load_waveform(bytes(bytes_), 60)).all()
