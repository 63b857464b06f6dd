"""The one decoder: what it reads and how, what it refuses and why, and how it writes."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from premeditate import images
from premeditate.errors import ExitCode, WriteError
from premeditate.images import ImageError, Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def data(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(width: int = 20, height: int = 14, mode: str = "RGB") -> Image.Image:
    """A smooth picture, so that lossy formats keep it."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.full_like(x, 90.0)], axis=-1)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes = b"", depth: int = 1, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 2)
    return png(side, side, b"".join(packer.compress(row) for _ in range(side)) + packer.flush())


def refusal(source: str | Path | bytes, **limits: int) -> str:
    """The one line that `load` refuses `source` with."""
    with pytest.raises(ImageError) as caught:
        images.load(source, Limits(**limits))
    line = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == ExitCode.IMAGE
    assert "\n" not in line and caught.value.mend in line and caught.value.mend
    return line


# -- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_as_plain_rgb(format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.anything"  # the content decides, not the name
    path.write_bytes(data(photo(), format))
    image = images.load(path)
    assert type(image) is Image.Image and image.mode == "RGB" and image.size == (20, 14) and image.info == {}
    assert np.abs(np.asarray(image, int) - np.asarray(photo(), int)).mean() < 12
    assert images.load(str(path)).tobytes() == images.load(path.read_bytes()).tobytes() == image.tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (16, 32), "white")
    upright.paste("red", (0, 0, 8, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.load(data(stored, format, exif=exif))
    assert image.size == (16, 32)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 6


def test_damaged_exif_does_not_spoil_whole_pixels() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 9
    assert images.load(data(photo(), "JPEG", exif=exif)).size == (20, 14)


def test_metadata_is_stripped() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    image = images.load(data(photo(), "JPEG", exif=exif, comment=b"secret", dpi=(300, 300)))
    again = images.encode(image, "JPEG")
    assert not image.info and not dict(image.getexif())
    assert b"where I live" not in again and b"secret" not in again


def test_alpha_is_composited_on_white() -> None:
    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert images.load(data(Image.new(mode, (3, 3), colour))).getpixel((1, 1)) == (255, 255, 255)
    assert images.load(data(Image.new("RGBA", (3, 3), (255, 0, 0, 128)))).getpixel((0, 0)) == (255, 127, 127)
    assert images.load(data(Image.new("RGBA", (3, 3), (9, 8, 7, 255)))).getpixel((0, 0)) == (9, 8, 7)


def test_palette_and_its_transparency() -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert images.load(data(palette)).getpixel((1, 0)) == (200, 100, 50)
    clear = images.load(data(palette, transparency=1))
    assert clear.getpixel((1, 0)) == (255, 255, 255) and clear.getpixel((0, 0)) == (10, 20, 30)
    assert images.load(data(palette, "GIF", transparency=1)).getpixel((1, 0)) == (255, 255, 255)


def test_transparent_colour_of_an_rgb_png() -> None:
    assert images.load(data(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3


def test_sixteen_bit_grey_is_scaled_not_cut() -> None:
    ramp = np.array([[0, 257, 32768, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        pixels = np.asarray(images.load(data(Image.fromarray(ramp), format)))[0, :, 0]
        assert pixels.tolist() == [0, 1, 128, 255], format
    wide = Image.fromarray(ramp.astype(np.int32))  # mode I
    assert np.asarray(images.to_rgb(wide))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0101)
    assert images.load(png(1, 1, zlib.compress(row), depth=16, colour=2)).getpixel((0, 0)) == (255, 128, 1)


def test_samples_of_unknown_range_are_refused() -> None:
    assert "floating point" in refusal(data(Image.new("F", (2, 2), 0.5), "TIFF"))
    assert "16 bits" in refusal(data(Image.new("I", (2, 2), 70_000), "TIFF"))


def test_one_bit() -> None:
    bits = Image.new("1", (9, 2))
    bits.putpixel((8, 1), 1)
    image = images.load(data(bits))
    assert image.getpixel((8, 1)) == (255, 255, 255) and image.getpixel((0, 0)) == (0, 0, 0)


def test_cmyk_jpeg_with_and_without_adobes_marker() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    inverted = data(cyan, "JPEG", quality=100)  # Pillow writes Adobe's marker and inverts, as Photoshop does
    assert np.abs(np.asarray(images.load(inverted), int) - (0, 255, 255)).max() < 8
    start = inverted.index(b"\xff\xee")
    length = struct.unpack(">H", inverted[start + 2 : start + 4])[0]
    bare = inverted[:start] + inverted[start + 2 + length :]  # without the marker the same samples are not inverted
    assert np.abs(np.asarray(images.load(bare), int) - 0).max() < 8  # 100 % magenta, yellow and black
    assert images.load(data(cyan, "TIFF")).getpixel((3, 3)) == (0, 255, 255)


def test_colour_profiles_become_srgb() -> None:
    grey = Image.new("RGB", (4, 4), (200, 100, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert images.load(data(grey, icc_profile=srgb)).getpixel((0, 0)) == (200, 100, 50)
    assert images.load(data(grey, icc_profile=b"no profile at all")).getpixel((0, 0)) == (200, 100, 50)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert images.load(data(grey, icc_profile=lab)).mode == "RGB"


def test_a_phones_multi_picture_jpeg_is_its_main_picture() -> None:
    second = Image.new("RGB", (20, 14), "black")
    file = data(photo(), "MPO", save_all=True, append_images=[second])
    image = images.load(file)
    assert np.abs(np.asarray(image, int) - np.asarray(photo(), int)).mean() < 6


# -- what is refused ----------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.png")


def test_things_that_are_not_files(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "ordinary file" in refusal(tmp_path / "pipe")  # and does not wait for a writer
    assert "ordinary file" in refusal("/dev/zero")
    assert "address" in refusal("https://example.com/cat.png")
    assert "cannot read" in refusal("a\0b.png")
    assert "cannot read" in refusal("x" * 5000)


def test_names_cannot_drive_the_terminal() -> None:
    line = refusal("\x1b[2Jevil\n.png")
    assert "\x1b" not in line and "\\x1b[2Jevil" in line


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert "empty" in refusal(tmp_path / "empty.png") and "empty" in refusal(b"")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"hello, I am a text file", "not an image"),
        (b"%PDF-1.7 ...", "a PDF"),
        (b'<?xml version="1.0"?><svg xmlns="..."></svg>', "an SVG"),
        (b"<!DOCTYPE html><HTML>404</HTML>", "a web page"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"PK\x03\x04", "zip"),
        (b"\x80\x04\x95", "not an image"),
    ],
)
def test_not_an_image(start: bytes, said: str) -> None:
    assert said in refusal(start)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_anywhere_is_refused_or_whole(format: str) -> None:
    whole = data(photo(), format)
    pixels = images.load(whole).tobytes()
    survived = 0
    for length in range(len(whole)):
        try:
            image = images.load(whole[:length])
        except ImageError:
            continue
        assert image.tobytes() == pixels, f"cut at {length}"
        survived += 1
    assert survived <= 24  # a lost trailer (PNG: checksums and the end chunk) costs no pixel


@given(st.binary(max_size=200), st.sampled_from(FORMATS), st.integers(0, 400))
def test_damage_raises_nothing_but_image_errors(noise: bytes, format: str, at: int) -> None:
    whole = data(photo(6, 5), format)
    at %= len(whole)
    for broken in (noise, whole[:12] + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            image = images.load(broken, Limits(pixels=100_000))
        except ImageError:
            continue
        assert image.mode == "RGB"


def test_a_refusal_prints_nothing_of_its_own() -> None:
    file = data(photo(), "TIFF")
    code = (
        "import sys; from premeditate import images\ntry: images.load(sys.stdin.buffer.read())\nexcept ValueError: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], input=file[:-5], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


def test_a_bomb_is_refused_without_decoding() -> None:
    file = bomb(20_000)
    assert len(file) < 60_000
    began = time.process_time()
    assert "20,000 x 20,000" in refusal(file)
    assert "169.0 megapixels" in refusal(bomb(13_000)[:2000])  # its pixels are not even there
    assert "64.0 megapixels" in refusal(bomb(8_000)[:2000])
    assert time.process_time() - began < 1.0


def test_limits_are_checked_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(data(photo()))
    assert "side allowed is 19" in refusal(tmp_path / "p.png", side=19)
    assert "megapixels" in refusal(tmp_path / "p.png", pixels=279)
    assert "MB" in refusal(tmp_path / "p.png", bytes=50) and "MB" in refusal(data(photo()), bytes=50)
    assert images.load(tmp_path / "p.png", Limits(side=20, pixels=280)).size == (20, 14)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(10_000_000_000)  # sparse; reading it would end the test
    assert "10,000.0 MB" in refusal(tmp_path / "huge.png")


def test_a_declared_size_of_zero_is_refused() -> None:
    refusal(png(0, 5, zlib.compress(b"")))


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(format: str) -> None:
    frames = [photo(), Image.new("RGB", (20, 14), "blue")]
    file = data(frames[0], format, save_all=True, append_images=frames[1:])
    assert ("several pages" if format == "TIFF" else "animated") in refusal(file)


def test_threads_may_load_at_once() -> None:
    file, results = data(photo(200, 100)), []
    threads = [threading.Thread(target=lambda: results.append(images.load(file).tobytes())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1


# -- writing ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_png_round_trip_is_exact(width: int, height: int, random: object) -> None:
    pixels = random.randbytes(width * height * 3)  # type: ignore[attr-defined]
    image = Image.frombytes("RGB", (width, height), pixels)
    assert images.load(images.encode(image)).tobytes() == pixels


def test_encode_formats_and_modes() -> None:
    for format in ("PNG", "jpeg", "webp"):
        assert images.load(images.encode(photo(mode="RGBA"), format)).size == (20, 14)
    with pytest.raises(ValueError, match="use PNG, JPEG or WEBP"):
        images.encode(photo(), "GIF")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
def test_save_in_the_format_of_the_suffix(suffix: str, tmp_path: Path) -> None:
    path = images.save(photo(), tmp_path / "new" / "folder" / f"out{suffix}")
    assert images.load(path).size == (20, 14)
    assert [p.name for p in path.parent.iterdir()] == [f"out{suffix}"]  # no temporary file stays


def test_save_replaces_atomically_and_keeps_a_link_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    images.save(photo(), link)
    assert link.is_symlink() and images.load(target).size == (20, 14)
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for path in (
        tmp_path / "folder.png",
        tmp_path / "file" / "out.png",
        tmp_path / "no-suffix",
        tmp_path / "out.gif",
        tmp_path / "pipe.png",
        tmp_path / ("n" * 300 + ".png"),
        Path("/proc/nowhere/out.png"),
        "bad\0name.png",
    ):
        for write in (images.check_output, lambda p: images.save(photo(), p)):
            with pytest.raises(WriteError) as caught:
                write(path)
            assert caught.value.exit_code == ExitCode.WRITE and "\n" not in str(caught.value) and caught.value.mend


def test_check_output_leaves_nothing_behind(tmp_path: Path) -> None:
    assert images.check_output(tmp_path / "a" / "b.png") == (tmp_path / "a" / "b.png").resolve()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images.save(photo(), tmp_path / "out.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="disk is full"):
        images.save(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_resize_back() -> None:
    image = photo()
    assert images.resize_back(image, (20, 14)) is image
    assert images.resize_back(image, (41, 33)).size == (41, 33)
