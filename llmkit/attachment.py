"""Images and documents that go with a message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["MAX_ATTACHED_BYTES", "Attachment", "Source", "collect_attachments"]

MAX_ATTACHED_BYTES = 15_000_000
"""Most bytes that all attachments of one request may have: Gemini takes 20 MB, and base64 adds a third."""

# Enough to recognise a file by, and few enough digits that no redaction takes them for a number.
SHOWN_DIGITS = 7

MediaType: TypeAlias = Literal["image/png", "image/jpeg", "image/webp", "application/pdf"]
Source: TypeAlias = "Attachment | bytes | bytearray | memoryview | str | PathLike[str]"

_KNOWN = "PNG, JPEG and WebP images, and PDF"


def _detect_media_type(data: bytes) -> MediaType | None:
    """Detect the media type from the first bytes: file names and declared types are often wrong."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    # Readers take a PDF whose head stands anywhere in the first kilobyte.
    return "application/pdf" if b"%PDF-" in data[:1024] else None


class Attachment(BaseModel):
    """An image (PNG, JPEG, WebP) or a document (PDF) that a user message carries: its bytes, never an address.

    Immutable and equal by content. In JSON the bytes are base64. Neither `repr` nor an error shows them.

    Attributes:
        media_type: `image/png`, `image/jpeg`, `image/webp` or `application/pdf`; must be what the bytes are.
        data: The whole file, at most `MAX_ATTACHED_BYTES`.

    Raises:
        ValidationError: The bytes are empty, too many, or something else than `media_type`. It is a `ValueError`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    media_type: MediaType
    data: bytes = Field(repr=False, min_length=1)

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        _require_fits(len(self.data))
        found = _detect_media_type(self.data)
        if found != self.media_type:
            raise ValueError(f"the bytes are no {self.media_type}, but {found or 'of an unknown kind'}")
        return self

    @classmethod
    def of(cls, source: Source) -> Attachment:
        """Return an attachment from a path, bytes, or an attachment, whose kind is read from its first bytes.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is none of the kinds that can be sent, too large, empty, or an address.
            TypeError: It is neither a path nor bytes.
        """
        if isinstance(source, Attachment):
            return source
        if isinstance(source, bytes | bytearray | memoryview):
            return cls.from_bytes(bytes(source))
        if isinstance(source, str | PathLike):
            return cls.from_path(source)
        raise TypeError(f"an image or a file is a path, bytes or an Attachment; got {type(source).__name__}")

    @classmethod
    def from_bytes(cls, data: bytes) -> Attachment:
        """Return an attachment from the bytes of a file; raises as `of`."""
        _require_fits(len(data))
        media_type = _detect_media_type(data)
        if media_type is None:
            raise ValueError(f"the bytes are of no kind that can be sent; {_KNOWN} can")
        return cls(media_type=media_type, data=data)

    @classmethod
    def from_path(cls, path: str | PathLike[str]) -> Attachment:
        """Return an attachment from a file; raises as `of`."""
        if isinstance(path, str) and path.split(":", 1)[0].lower() in ("http", "https", "data", "gs", "s3"):
            raise ValueError("llmkit fetches nothing from an address; give a path, or the bytes")
        place = Path(path)
        try:
            # Checked first: a film of gigabytes must not be read to find out that it is too large.
            _require_fits(place.stat().st_size)
            return cls.from_bytes(place.read_bytes())
        except ValueError as error:
            raise ValueError(f"{place.name} cannot be attached: {error}") from None

    @property
    def is_image(self) -> bool:
        """Whether it is an image, and not a document."""
        return self.media_type.startswith("image/")

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes. Takes a millisecond for each megabyte or two."""
        return hashlib.sha256(self.data).hexdigest()

    def __repr__(self) -> str:
        return f"[{self.media_type} {_format_size(len(self.data))} sha256:{self.sha256[:SHOWN_DIGITS]}…]"

    __str__ = __repr__


def collect_attachments(
    images: Source | Iterable[Source] = (), files: Source | Iterable[Source] = ()
) -> tuple[Attachment, ...]:
    """Return the attachments of `images=` and `files=`, each one source or several; raises as `of`."""
    pictures, documents = (tuple(Attachment.of(source) for source in _as_iterable(given)) for given in (images, files))
    for wanted, found in (("files", pictures), ("images", documents)):
        misplaced = [each for each in found if each.is_image == (wanted == "images")]
        if misplaced:
            raise ValueError(f"{misplaced[0]} belongs in {wanted}=")
    return pictures + documents


def _as_iterable(given: Source | Iterable[Source]) -> Iterable[Source]:
    is_single = isinstance(given, Attachment | bytes | bytearray | memoryview | str) or not isinstance(given, Iterable)
    return [given] if is_single else given  # type: ignore[list-item, return-value]


def _require_fits(size: int) -> None:
    if size > MAX_ATTACHED_BYTES:
        raise ValueError(
            f"it has {_format_size(size)}, and attachments may have {_format_size(MAX_ATTACHED_BYTES)} in all; "
            "scale it down, or send a part of it"
        )
    if not size:
        raise ValueError("it is empty")


def _format_size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 999_500 else f"{size / 1_000_000:.1f} MB"
