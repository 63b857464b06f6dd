"""The only place that decodes or encodes an image. Limits live here and are checked before a pixel is decoded.

`load` gives a plain RGB picture: oriented upright, colours in sRGB, transparency on white, no metadata. Everything
behind it may rely on that.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from premeditate.errors import ImageError, WriteError
from premeditate.files import check_writable, write_atomic

__all__ = [
    "LIMITS",
    "UNLIMITED",
    "ImageError",
    "Limits",
    "TooLarge",
    "WriteError",
    "check_output",
    "check_writable",
    "encode",
    "load",
    "resize_back",
    "save",
    "size",
    "to_rgb",
]


@dataclass(frozen=True)
class Limits:
    """What `load` accepts: file size in bytes, width x height in pixels, the longer side in pixels."""

    bytes: int = 50_000_000
    pixels: int = 50_000_000
    side: int = 16_000


class TooLarge(ImageError):
    """A picture beyond `Limits`."""


LIMITS = Limits()
HEAD = 1 << 16
"""Bytes of a file that `size` looks at first."""
PNG = b"\x89PNG\r\n\x1a\n"
UNLIMITED = Limits(bytes=1 << 62, pixels=1 << 62, side=1 << 31)  # for what was checked before it was stored
READ = "PNG, JPEG, WebP, GIF, BMP or TIFF"
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# The decoders are named one by one, and called directly: `Image.open` would offer the bytes to some forty others, and
# it warns about large pictures through the process-wide warning filters, which threads cannot change safely.
# JpegImageFile (rather than its factory) reads a phone's multi-picture file as its main picture.
_DECODERS: tuple[tuple[str, Callable[[bytes], bool], type], ...] = (
    ("PNG", lambda head: head.startswith(PNG), PngImagePlugin.PngImageFile),
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("WebP", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    ("GIF", lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    ("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*"), TiffImagePlugin.TiffImageFile),
)
_UNREAD: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("an AVIF or HEIC picture", lambda head: head[4:8] == b"ftyp"),
    ("a PDF", lambda head: head.startswith(b"%PDF")),
    ("an SVG drawing", lambda head: b"<svg" in head),
    ("a web page", lambda head: b"<html" in head.lower()),
    ("a Photoshop file", lambda head: head.startswith(b"8BPS")),
    ("a zip archive", lambda head: head.startswith(b"PK\x03\x04")),
)
_ORIENTATION = 0x0112
# Damaged metadata makes Pillow print a warning per field; what matters is said once, by `ImageError`.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(source: str | os.PathLike[str] | bytes, limits: Limits = LIMITS) -> Image.Image:
    """Decode a path or bytes into a plain RGB image.

    Raises `ImageError` (a ValueError, one line with the mend) for anything that is not one whole picture within
    `limits`. Limits are checked on the header, so a 20,000 x 20,000 pixel file of 20 KB costs nothing.
    """
    if isinstance(source, bytes):
        name, data = "the image", source
        if len(data) > limits.bytes:
            raise _too_heavy(name, len(data), limits)
    else:
        name = str(source)
        data = _read(name, limits)
    if not data:
        raise ImageError(f"{name} is empty (zero bytes)", "copy or download it again")
    kind, decoder = _identify(name, data[:1024])
    try:
        image = cast(Image.Image, decoder(io.BytesIO(data)))
        _check(name, image, limits)
        if getattr(image, "is_animated", False):
            what = "several pages" if kind == "TIFF" else "animated"
            raise ImageError(f"{name} is {'of ' if kind == 'TIFF' else ''}{what}", "save the one frame to edit as PNG")
        image.load()
    except ImageError:
        raise
    # Whatever a decoder trips over (SyntaxError, struct.error, zlib.error, MemoryError ...) is a broken file.
    except Exception as error:
        raise ImageError(
            f"{name} is a broken or truncated {kind} file ({str(error) or type(error).__name__})",
            "copy or download it again, or save it anew as PNG",
        ) from error
    return _plain(name, image)


def size(path: str | os.PathLike[str], limits: Limits = LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of what `load` gives. A PNG is not decoded, so that pixels may still be missing from it
    or be broken. Raises `ImageError` as `load`; beyond the limits it is `TooLarge`."""
    name = str(path)
    data = _read(name, limits, HEAD)
    if data.startswith(PNG):
        try:
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        except Exception:  # broken, or with more before its pixels than the head holds
            return load(path, limits).size
        _check(name, image, limits)
        if not image.is_animated and "exif" not in image.info:
            return image.size
    return load(path, limits).size


def _read(name: str, limits: Limits, most: int = -1) -> bytes:
    if "://" in name or name.startswith("data:"):
        raise ImageError(f"{name[:80]} is an address, not a file", "download it and give the file")
    try:
        path = Path(name).expanduser()
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(f"{name} is a folder", "give the image file inside it")
        # A pipe or a device could block for ever or never end.
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{name} is not an ordinary file", "save the image to a file first")
        if info.st_size > limits.bytes:
            raise _too_heavy(name, info.st_size, limits)
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {name}", f"check the path (looked in {Path.cwd()})") from error
    except ImageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ImageError(f"cannot read {name}: {why}", "check the path and its permissions") from error


def _too_heavy(name: str, count: int, limits: Limits) -> ImageError:
    return TooLarge(
        f"{name} has {count / 1e6:,.1f} MB, the limit is {limits.bytes / 1e6:g} MB", "save it smaller, or as JPEG"
    )


def _identify(name: str, head: bytes) -> tuple[str, type]:
    for kind, matches, decoder in _DECODERS:
        if matches(head):
            return kind, decoder
    for kind, matches in _UNREAD:
        if matches(head):
            raise ImageError(f"{name} is {kind}", f"convert it to {READ}")
    raise ImageError(f"{name} is not an image", f"give a {READ} file")


def _check(name: str, image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} declares {width} x {height} pixels", "save it anew with at least one pixel")
    if max(width, height) > limits.side:
        raise TooLarge(
            f"{name} declares {width:,} x {height:,} pixels, the longest side allowed is {limits.side:,}",
            "scale it down",
        )
    if width * height > limits.pixels:
        raise TooLarge(
            f"{name} declares {width * height / 1e6:,.1f} megapixels, the limit is {limits.pixels / 1e6:g}",
            "scale it down",
        )


def _plain(name: str, image: Image.Image) -> Image.Image:
    """Upright, sRGB, on white, RGB, without metadata."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # metadata may be damaged where the pixels are whole: then there is no orientation to obey
        orientation = None
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile) and "adobe" not in image.info:
        # Pillow inverts every four-channel JPEG; only those with Adobe's marker are stored inverted.
        from PIL import ImageChops

        image = _like(ImageChops.invert(image), image)
    try:
        image = to_rgb(_to_srgb(image))
    except ImageError as error:
        raise ImageError(f"{name}: {error.problem}", error.mend) from error
    except Exception as error:
        raise ImageError(f"{name} cannot be converted to RGB ({error})", "save it anew as an 8-bit RGB PNG") from error
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _like(image: Image.Image, model: Image.Image) -> Image.Image:
    image.info = dict(model.info)
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours of a picture with an ICC profile (wide-gamut phones, print) as sRGB; unusable profiles are ignored, as
    every viewer does."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (source.profile.profile_description or "").lower():
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return image if turned is None else _like(turned, image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of any Pillow image as plain RGB without metadata: transparency on white, 16-bit samples scaled to 8.

    Raises `ImageError` for samples whose range is unknown (floating point; integers beyond 16 bits).
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_rgb(image)
    elif image.has_transparency_data or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    else:
        image = image.convert("RGB")
    image.info = {}
    return image


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F" or int(values.min()) < 0 or int(values.max()) > 65535:
        raise ImageError("its samples are floating point or deeper than 16 bits", "save it as an 8- or 16-bit PNG")
    wide = values.astype(np.uint32)
    grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey[wide == key] = 255
    return Image.fromarray(grey, "L").convert("RGB")


def encode(image: Image.Image, format: str = "PNG", *, quality: int = 95, compress_level: int = 6) -> bytes:
    """The bytes of `image` as "PNG" (lossless; `compress_level` 0-9), "JPEG" or "WEBP" (`quality` 1-100).

    No metadata is written. Raises ValueError for another format.
    """
    buffer = io.BytesIO()
    plain = image if image.mode == "RGB" and not image.info else to_rgb(image)
    match format.upper():
        case "PNG":
            plain.save(buffer, "PNG", compress_level=compress_level)
        case "JPEG":
            plain.save(buffer, "JPEG", quality=quality, subsampling=0)
        case "WEBP":
            plain.save(buffer, "WEBP", quality=quality)
        case _:
            raise ValueError(f"cannot encode {format}; use PNG, JPEG or WEBP")
    return buffer.getvalue()


def _format_of(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        what = f"{suffix} is not a format that is written" if suffix else "it has no suffix"
        raise WriteError(f"cannot write {os.fspath(path)}: {what}", "name it .png, .jpg or .webp")
    return SUFFIXES[suffix]


def check_output(path: str | os.PathLike[str]) -> Path:
    """`check_writable` for an image: its suffix must also name a format that `save` writes. Raises `WriteError`."""
    _format_of(path)
    return check_writable(Path(path))


def save(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write `image` atomically, in the format of the suffix (.png, .jpg, .jpeg, .webp); missing folders are made.

    An existing file is replaced; a reader sees the old picture or the new. Raises `WriteError`.
    """
    return write_atomic(Path(path), encode(image, _format_of(path)))


def resize_back(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at `size` (width, height in pixels): an editor's output at its source's size. Same size: untouched."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
