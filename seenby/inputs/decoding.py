"""A picture file, decoded as a viewer shows it."""

from __future__ import annotations

import ctypes
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from seenby.errors import InputError, as_input_error, message_of

# Pillow can do more than these, but not safely: it starts Ghostscript for an EPS. What it opens as
# JPEG may be a phone's MPO, of several frames; as a name for its open, MPO is unknown.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 80_000_000  # of a picture: decoded they take up to 700 MB


def open_image(path: Path) -> Image.Image:
    """Grey (L) or colour (RGB), as a viewer shows it: turned, transparent parts white."""

    def describe(error: BaseException) -> str:
        if isinstance(error, UnidentifiedImageError):
            return f"{path} is {'not an image' if path.stat().st_size else 'an empty file'}"
        return f"{path} is truncated or broken ({message_of(error)})"  # decoders raise anything

    fix = "give a whole PNG, JPEG, GIF, BMP, TIFF or WebP picture"
    image: Image.Image
    silence_decoders()
    with as_input_error(describe, fix), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path} is too large, {image.width} x {image.height} pixels; give at "
                             f"most {MAX_PIXELS // 10**6} million")
        ImageOps.exif_transpose(image, in_place=True)
        return to_opaque_8_bits(image, path)


def to_opaque_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey (L) or colour (RGB), transparent parts white."""
    if image.mode[0] in "IF":
        image = scale_to_8_bits(image, path)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to nothing but LA
        image = image.convert("LA")
    if image.has_transparency_data:
        transparent = to_mode(image, "RGBA")
        image = Image.new("RGB", transparent.size, "white")
        image.paste(transparent, mask=transparent)
    return to_mode(image, "L" if image.mode in ("1", "L") else "RGB")


@cache
def silence_decoders() -> None:
    """What Pillow and libtiff find wrong is raised, and they need not write it down as well.

    libtiff's handler is taken away in the library that Pillow is linked with, for the process: to
    catch what comes by file descriptor 2 would catch other threads' lines, too.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it logs to standard error
    with suppress(AttributeError, OSError):  # linked in such a way that it can't be found
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def scale_to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Pillow clips 16-bit and float grey at 255 instead of scaling it."""
    values = np.array(image, np.float32)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:
        raise InputError(f"{path} holds numbers from {low:g} to {high:g}; give 8 or 16 bits")
    white = 65535 if ";16" in image.mode or high > 255 else 255 if high > 1 else 1
    values *= 255
    values /= white
    return Image.fromarray(values.round(out=values).astype(np.uint8))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converted to Pillow's mode; the same object if it already has it."""
    return image if image.mode == mode else image.convert(mode)
