"""The content cache: complete answers by what was asked, in diskcache, as JSON and nothing else."""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from pathlib import Path
from typing import Any
from uuid import uuid4

import diskcache
from diskcache.core import DBNAME, MODE_RAW, UNKNOWN
from pydantic import ValidationError

from llmkit.errors import LLMStoreError
from llmkit.ports import CacheKey
from llmkit.types import LLMResponse

__all__ = ["DiskContentCache", "JsonTextDisk"]

_ENTRY_FORM = "llmkit-cache-1"
# A cache that is locked for longer is a miss: it is asked on the event loop.
LOCK_TIMEOUT_S = 1.0
_BROKEN = (sqlite3.Error, OSError, diskcache.Timeout)


class JsonTextDisk(diskcache.Disk):  # type: ignore[misc]
    """Text in, text out.

    diskcache's own disks unpickle whatever a row says is pickled (CVE-2025-69872); this one refuses.
    """

    def put(self, key: Any) -> tuple[str, bool]:
        """Accept a string as the key, unchanged."""
        if not isinstance(key, str):
            raise TypeError("a cache key is text")
        return key, True

    def get(self, key: Any, raw: bool) -> Any:
        """Return a string key; anything else did not come from here."""
        return key if raw and isinstance(key, str) else None

    def store(
        self,
        value: Any,
        read: bool,
        key: Any = UNKNOWN,  # noqa: ARG002 - diskcache's signature
    ) -> tuple[int, int, str | None, str | None]:
        """Keep text inside the row."""
        if read or not isinstance(value, str):
            raise TypeError("a cache value is text")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """Give text back; a row in any other mode, or in a file, did not come from here."""
        return value if mode == MODE_RAW and filename is None and not read and isinstance(value, str) else None


class DiskContentCache:
    """Answers on disk, readable by their owner only.

    Args:
        directory: Folder of the cache; made when missing, with mode 0700.
        ttl_s: How long an answer is served, in seconds.
        size_limit_bytes: Size above which the answers stored first are dropped.

    Raises:
        LLMStoreError: The folder cannot be made or opened.
    """

    def __init__(self, directory: Path, *, ttl_s: float, size_limit_bytes: int) -> None:
        self._ttl_s = ttl_s
        self._cache = _open(directory, size_limit_bytes)

    def get(self, key: CacheKey) -> LLMResponse | None:
        """Return the stored answer, or None when there is none that can be trusted."""
        text = key.text()
        try:
            entry = self._cache.get(_digest(text))
        except _BROKEN:
            return None
        if not isinstance(entry, str):
            return None
        head, _, body = entry.partition("\n")
        if head != _seal(text, body):
            return None
        try:
            return LLMResponse.model_validate_json(body)
        except ValidationError:
            return None

    def put(self, key: CacheKey, response: LLMResponse) -> None:
        """Keep the answer, without what belongs to the call that got it."""
        text = key.text()
        body = response.as_stored()
        try:
            self._cache.set(
                _digest(text), f"{_seal(text, body)}\n{body}", expire=self._ttl_s, tag=_digest(key.workspace_id)
            )
        except _BROKEN:
            return

    def erase(self, workspace_id: str) -> int:
        """Drop every answer of a workspace and return how many there were.

        Raises:
            LLMStoreError: The folder cannot be written.
        """
        try:
            return int(self._cache.evict(_digest(workspace_id)))
        except _BROKEN as error:
            raise LLMStoreError(f"The cache in {self._cache.directory} cannot be cleared: {error}") from None

    def close(self) -> None:
        """Close the files of this thread."""
        self._cache.close()


def _open(directory: Path, size_limit_bytes: int) -> diskcache.Cache:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        try:
            return _open_files(directory, size_limit_bytes)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked, read-only or not to be opened: the file itself is sound
            _set_aside(directory, error)
            return _open_files(directory, size_limit_bytes)
    except (*_BROKEN, ValueError) as error:
        raise LLMStoreError(
            f"The cache folder {directory} cannot be used ({error}); "
            "make it writable, set LLM_CACHE_DIR to another folder, or LLM_CACHE_ENABLED=false"
        ) from None


def _open_files(directory: Path, size_limit_bytes: int) -> diskcache.Cache:
    return diskcache.Cache(
        str(directory),
        timeout=LOCK_TIMEOUT_S,
        disk=JsonTextDisk,
        size_limit=size_limit_bytes,
        eviction_policy="least-recently-stored",
    )


def _set_aside(directory: Path, error: sqlite3.DatabaseError) -> None:
    """Rename a damaged cache file and warn: cached answers are expendable, and no call may fail because of them."""
    damaged = directory / f"cache.db.damaged-{uuid4().hex[:8]}"
    (directory / DBNAME).rename(damaged)
    for suffix in ("-wal", "-shm"):
        (directory / f"{DBNAME}{suffix}").unlink(missing_ok=True)
    warnings.warn(
        f"The content cache was damaged ({error}): it is now {damaged.name}, and a new one is used. Stored runs are "
        "not affected.",
        stacklevel=2,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _seal(key_text: str, body: str) -> str:
    """Ties a body to its key, so that a damaged or moved entry is a miss."""
    return _digest(f"{_ENTRY_FORM}\x1f{key_text}\x1f{body}")
