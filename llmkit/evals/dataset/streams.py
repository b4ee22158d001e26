"""Files as text: decompressed up to a limit, and decoded as far as they are read."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, ZipInfo

from llmkit.errors import LLMConfigurationError, LLMDatasetError

__all__ = ["COMPRESSIONS", "ZIP", "TextFile", "find_zip_member", "open_bytes"]

BYTES_PER_MB = 1_000_000
CHUNK = 65_536
# What is looked at to recognise a compression, an encoding, or a better one.
HEAD = 100_000
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# An archive and no compression: it has a file in it, and a name for that.
ZIP = ".zip"
# "BZh" begins texts too; the mark of the first block, or of an empty file, does not.
MAGIC = (
    (re.compile(rb"\x1f\x8b\x08"), ".gz"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), ".bz2"),
    (re.compile(rb"\xfd7zXZ\x00"), ".xz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), ".zst"),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# UTF-32 first: its mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


# Files that are no text, whatever their names say.
SIGNATURES = (
    (b"PK\x03\x04", "an Excel workbook or a ZIP archive; read it with pandas.read_excel, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "a workbook of an old Excel; read it with pandas.read_excel"),
    (b"PAR1", "Parquet; name it .parquet"),
    (b"ARROW1", "Arrow; read it with pyarrow and pass the table"),
    (b"SQLite format 3", "a SQLite database; pass the rows of a query"),
    (b"%PDF", "a PDF"),
    *(
        (magic, "compressed data once more; decompress it")
        for magic in (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    ),
)
# What a server sends in place of a file that is not there, or that takes a login.
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
WESTERN_SIGNS = "\u201c\u201d\u201e\u2018\u2019\u2013\u2014\u2026\u20ac\xa0\xa3\xa7\xab\xb0\xbb"


class _Decompressed(io.RawIOBase):
    """The content of a compressed file, up to a limit.

    A file of 100 kB can decompress to 100 MB, and to any size in layers, so the bytes are counted as they come.
    """

    def __init__(self, inner: _Closing, name: str, most_mb: int) -> None:
        self._inner = inner
        self._name = name
        self._most_mb = most_mb
        self._left = most_mb * BYTES_PER_MB

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(min(len(buffer), CHUNK))
        # ValueError: pyarrow's errors are such.
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, BadZipFile) as error:
            raise LLMDatasetError(
                f"{self._name}: the compressed data is damaged or cut off ({error}); copy or download the file again"
            ) from None
        self._left -= len(data)
        if self._left < 0:
            raise LLMDatasetError(
                f"{self._name}: its content takes more than {self._most_mb:,} MB; "
                "raise LLM_MAX_FILE_MB if you trust the file, or use fewer samples (limit)."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def open_bytes(path: Path, most_mb: int) -> tuple[IO[bytes], str]:
    """Open a file, decompressed if its first bytes are those of a compression, whatever its name says.

    Args:
        path: The file.
        most_mb: Most decompressed MB that may be read of it.

    Returns:
        The file and its compression, such as `.gz`; "" for none.

    Raises:
        LLMDatasetError: It is only a pointer to the file.
        LLMConfigurationError: No package reads its compression.
    """
    file: IO[bytes] = path.open("rb")
    try:
        head = file.read(len(LFS_POINTER))
        file.seek(0)
        if head == LFS_POINTER:
            raise LLMDatasetError(f"{path.name}: this is a pointer of Git LFS and not the file; run git lfs pull")
        # By its name, unlike the others: a workbook of Excel is an archive too, and is refused as what it is.
        kind = ZIP if path.suffix.lower() == ZIP else next((suffix for magic, suffix in MAGIC if magic.match(head)), "")
        if not kind:
            return file, ""
        opened: Any
        if kind == ".gz":
            opened = gzip.GzipFile(fileobj=file)
        elif kind == ".bz2":
            opened = bz2.BZ2File(file)
        elif kind == ZIP:
            opened = _open_zip_member(file, path.name)
        elif kind == ".xz":
            opened = lzma.LZMAFile(file)  # noqa: SIM115 - closed by _Closing
        else:
            opened = _open_zst(file, path.name)
        # Closing a decompressor does not close the file below it.
        return io.BufferedReader(_Decompressed(_Closing(opened, file), path.name, most_mb), CHUNK), kind
    except BaseException:
        file.close()
        raise


class _Closing:
    """A decompressor that closes its file, too."""

    def __init__(self, opened: IO[bytes], file: IO[bytes]) -> None:
        self._opened = opened
        self._file = file
        self.read = opened.read

    def close(self) -> None:
        """Close both."""
        self._opened.close()
        self._file.close()


def find_zip_member(path: Path) -> str:
    """Return the name of the one file in a ZIP archive.

    Raises:
        LLMDatasetError: It has none, or several, or is no archive.
    """
    with path.open("rb") as file:
        return PurePosixPath(_find_member(file, path.name)[1].filename).name


def _find_member(file: IO[bytes], name: str) -> tuple[ZipFile, ZipInfo]:
    try:
        archive = ZipFile(file)
    except BadZipFile as error:
        raise LLMDatasetError(f"{name} cannot be read as a ZIP archive: {error}") from None
    # macOS adds a folder of its own, with a hidden file for each of the user's.
    members = [
        each
        for each in archive.infolist()
        if not each.is_dir() and "__MACOSX" not in each.filename and PurePosixPath(each.filename).name[:1] != "."
    ]
    if len(members) != 1:
        shown = ", ".join(each.filename for each in members[:5]) + (", ..." if len(members) > 5 else "")
        has = f"{len(members)} files ({shown})" if members else "no file"
        raise LLMDatasetError(f"{name} has {has}, and one can be read as it is; unpack it, and name the file to read")
    return archive, members[0]


def _open_zip_member(file: IO[bytes], name: str) -> Any:
    archive, member = _find_member(file, name)
    try:
        return archive.open(member)
    except (RuntimeError, NotImplementedError) as error:  # a password, or a method that Python lacks
        reason = "it has a password" if member.flag_bits & 1 else str(error)
        raise LLMDatasetError(f"{name} cannot be unpacked ({reason}); unpack it first") from None


def _open_zst(file: IO[bytes], name: str) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise LLMConfigurationError(
            f"{name}: reading .zst needs pyarrow: pip install 'llmkit-research[parquet]'"
        ) from None
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


class TextFile:
    """Text of a file. Read it once, by lines or by chunks, and close it.

    Args:
        path: The file.
        most_mb: As for `open_bytes`.
        encoding: Its encoding; None for UTF-8, or the one that its first bytes show.

    Raises:
        LLMDatasetError: The encoding is unknown.
    """

    def __init__(self, path: Path, most_mb: int, encoding: str | None) -> None:
        self._path = path
        self.most_mb = most_mb
        self.name = path.name
        try:
            self._given = None if encoding is None else codecs.lookup(encoding).name
            "".encode(self._given or "utf-8")
        except (LookupError, ValueError):
            raise LLMDatasetError(
                f"{path.name}: there is no encoding {encoding!r}; such are 'utf-8', 'cp1252', 'utf-16' and 'shift_jis'"
            ) from None

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], str]]:
        file, self.compression = open_bytes(self._path, self.most_mb)
        with file:
            buffered: Any = file
            head = buffered.peek(4)
            if _WEB_PAGE.match(head):
                raise LLMDatasetError(
                    f"{self.name} is a web page and not the data: download the file itself, on GitHub in its raw form"
                )
            head = head[:4]
            marked = next((name for mark, name in MARKS if head.startswith(mark)), None)
            if self._given is None:
                # UTF-16 without a mark has a NUL in every second byte of plain characters, which no other text has.
                bare = {b"\0": "utf-16-be"}.get(head[:1]) or {b"\0": "utf-16-le"}.get(head[1:2])
                yield file, marked or (bare if b"\0" in head and len(head) > 1 else None) or "utf-8"
            else:
                yield file, "utf-8-sig" if (self._given, marked) == ("utf-8", "utf-8-sig") else self._given

    def lines(self) -> Iterator[str]:
        """Yield the lines with their ends, each of them decoded when it is wanted.

        Raises:
            LLMDatasetError: A line has another encoding; the message names the line and a better one.
        """
        with self._open() as (file, encoding):
            if encoding.startswith(("utf-16", "utf-32")):
                # The byte of a line feed is a part of other characters, too.
                decoded = io.TextIOWrapper(file, encoding=encoding, newline="\n")
                number = 0
                try:
                    for number, line in enumerate(decoded, start=1):  # noqa: B007
                        yield line
                except UnicodeError:
                    raise self._describe_encoding(encoding, f", line {number + 1}") from None
                return
            rest = "utf-8" if encoding == "utf-8-sig" else encoding
            number = 0
            try:
                for number, raw in enumerate(file, start=1):
                    yield raw.decode(encoding if number == 1 else rest)
            except UnicodeError:
                raise self._describe_encoding(encoding, f", line {number}") from None

    def chunks(self) -> Iterator[str]:
        """Yield the text in pieces.

        Raises:
            LLMDatasetError: It has another encoding; the message names a better one.
        """
        with self._open() as (file, encoding):
            decoder = codecs.getincrementaldecoder(encoding)()
            try:
                while data := file.read(CHUNK):
                    yield decoder.decode(data)
                yield decoder.decode(b"", final=True)
            except UnicodeError:
                raise self._describe_encoding(encoding, "") from None

    def _describe_encoding(self, encoding: str, where: str) -> LLMDatasetError:
        file, _kind = open_bytes(self._path, self.most_mb)
        with file:
            head = file.read(HEAD)
        found = next((content for signature, content in SIGNATURES if head.startswith(signature)), None)
        if found is not None:
            return LLMDatasetError(f"{self.name}: not text, but {found}")
        shown = "UTF-8" if encoding.startswith("utf-8") else encoding
        better = _guess_encoding(head, encoding)
        remedy = f"pass encoding={better!r} (--encoding {better})" if better else "pass encoding= (--encoding)"
        sure = ", which its bytes fit," if better else " with the one it was saved in,"
        return LLMDatasetError(f"{self.name}{where}: not {shown} text; {remedy}{sure} or save it as UTF-8")


def _guess_encoding(head: bytes, encoding: str) -> str | None:
    """Return another encoding that the first bytes of a file fit; None when there is none."""
    candidates = [name for mark, name in MARKS if head.startswith(mark)]
    if not encoding.startswith("utf-8"):
        candidates.append("utf-8")
    if _looks_western(head):
        candidates.append("cp1252")
    # Comes with litellm, by way of its packages; a guess is no reason to require it.
    with suppress(ImportError):
        from charset_normalizer import from_bytes

        best = from_bytes(head, threshold=0.4).best()
        candidates += [] if best is None else [best.encoding.replace("_", "-")]
    for name in [*candidates, "cp1252"]:
        with suppress(UnicodeError):
            # Not to the end, because the last character may be cut.
            codecs.getincrementaldecoder(name)().decode(head)
            if codecs.lookup(name).name != codecs.lookup(encoding).name:
                return name
    return None


def _looks_western(head: bytes) -> bool:
    """Return whether bytes are text of Western Europe as Windows writes it: plain letters and a few others.

    Short texts of this kind are what detectors are worst at, and they are the most frequent.
    """
    try:
        text = head.decode("cp1252")
    except UnicodeError:
        return False
    letters = [character for character in text if character.isalpha()]
    special = [character for character in text if character > "\x7f"]
    is_common = all(character.isalpha() or character in WESTERN_SIGNS for character in special)
    return bool(special) and is_common and len(special) <= 0.25 * len(letters)
