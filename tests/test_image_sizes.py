"""What a picture's size is, without its pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from premeditate import images
from premeditate.images import ImageError, Limits, TooLarge


def head(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, and has none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return images.PNG + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\1\0IDAT"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_a_size_is_that_of_the_picture(format: str, orientation: int | None, tmp_path: Path) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / "picture"
    Image.new("RGB", (20, 14), "red").save(path, format, exif=exif)
    assert images.size(path) == images.load(path).size


def test_a_png_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(head(30, 20))
    assert images.size(path) == (30, 20)
    with pytest.raises(ImageError, match="broken"):
        images.load(path)
    long = PngImagePlugin.PngInfo()  # a head that is longer than what is looked at
    long.add_text("words", "so many " * 20_000)
    Image.new("RGB", (9, 7)).save(path, pnginfo=long)
    assert images.size(path) == (9, 7)


def test_limits_hold_and_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content, said in ((head(20_000, 20_000), "longest side"), (head(15_000, 15_000), "megapixels")):
        path.write_bytes(content)
        for read in (images.size, images.load):
            with pytest.raises(TooLarge, match=said):
                read(path)
    with pytest.raises(TooLarge, match="MB"):
        images.size(path, Limits(bytes=8))
    none = ((b"", "empty"), (b"x", "not an image"), (head(0, 5), r"0 x 5|broken"), (images.PNG, "broken"))
    for content, said in none:
        path.write_bytes(content)
        with pytest.raises(ImageError, match=said) as caught:
            images.size(path)
        assert not isinstance(caught.value, TooLarge)
    with pytest.raises(ImageError, match="no such file"):
        images.size(tmp_path / "gone.png")
