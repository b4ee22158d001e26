"""Small images and documents, made here: nothing is read from a disk."""

from __future__ import annotations

import struct
import zlib

__all__ = ["JPEG", "PDF", "WEBP", "png"]

# Recognised by their first bytes; no test decodes them.
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
WEBP = b"RIFF\x1a\x00\x00\x00WEBPVP8 "
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"


def png(red: int = 255, *, width: int = 1) -> bytes:
    """A whole PNG of one colour, one pixel high."""
    row = b"\x00" + bytes([red, 0, 0]) * width
    head = struct.pack(">IIBBBBB", width, 1, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
