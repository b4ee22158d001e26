"""The content cache: complete answers by the hash of their requests, in diskcache, as JSON and nothing else."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final
from uuid import uuid4

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, MODE_RAW, UNKNOWN
from pydantic import ValidationError

from llmkit.cleanup import close_when_dropped, start_reaper
from llmkit.errors import LLMStoreError
from llmkit.persistence.fork_safety import pause_around_forks
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


# Those of diskcache's settings that SQLite keeps for each connection, and not in the file.
_PRAGMAS: Final = tuple(
    f"PRAGMA {name}={DEFAULT_SETTINGS[f'sqlite_{name}']}" for name in ("cache_size", "mmap_size", "synchronous")
)
# Connections that a child inherited in the middle of a read. SQLite must not even close them there.
_INHERITED: Final[list[sqlite3.Connection]] = []


class _OneConnectionCache(diskcache.Cache):  # type: ignore[misc]
    """diskcache on one connection, for all threads of a process in turn.

    diskcache opens a connection in every thread, which only that thread can close: each thread that ends leaves an open
    file behind, about which Python 3.13 warns.
    """

    def __init__(self, directory: Path, size_limit_bytes: int) -> None:
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._lock = Lock()
        self._is_paused = False
        try:
            super().__init__(
                str(directory),
                timeout=LOCK_TIMEOUT_S,
                disk=JsonTextDisk,
                size_limit=size_limit_bytes,
                eviction_policy="least-recently-stored",
            )
        except BaseException:
            self.close()
            raise
        pause_around_forks(self)

    def lock(self) -> Lock:
        """Return the lock to be taken around every use."""
        if self._pid != os.getpid():
            self._start_anew()
        return self._lock

    def _start_anew(self) -> None:
        """Forget what a forked child inherited: the lock may be taken by a thread that the child does not have."""
        if self._connection is not None:
            _INHERITED.append(self._connection)
            self._connection = None
        self._txn_id = None
        self._lock = Lock()
        self._pid = os.getpid()
        pause_around_forks(self)

    @property
    def _con(self) -> sqlite3.Connection:
        """The connection; diskcache's own property of this name gives each thread another."""
        if self._connection is None:
            self._connection = sqlite3.connect(
                Path(self._directory, DBNAME), timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            # While another process sets a new file up it is locked, also for these. diskcache, which is then in its own
            # set-up, waits for the lock and sets them again.
            with suppress(sqlite3.OperationalError):
                for pragma in _PRAGMAS:
                    self._connection.execute(pragma)
        return self._connection

    def close(self) -> None:
        """Close the file, in the process that opened it. The next use opens it again."""
        if self._pid == os.getpid() and self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def pause(self, patience_s: float) -> None:
        """Close the file for a fork, see `fork_safety`."""
        if self._pid == os.getpid():
            self._is_paused = self._lock.acquire(timeout=patience_s)
            if self._is_paused:
                self.close()

    def resume(self) -> None:
        """Go on in the parent."""
        if self._is_paused and self._pid == os.getpid():
            self._is_paused = False
            self._lock.release()


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
        start_reaper()
        close_when_dropped(self, self._cache.close)

    def get(self, key: CacheKey) -> LLMResponse | None:
        """Return the stored answer, or None when there is none that can be trusted."""
        text = key.text()
        try:
            with self._cache.lock():
                entry = self._cache.get(_digest(text))
        except _BROKEN:
            return None
        if not isinstance(entry, str):
            return None
        # Any process of this user can write the file, so an entry counts only with the hash of its key and body.
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
            with self._cache.lock():
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
            with self._cache.lock():
                return int(self._cache.evict(_digest(workspace_id)))
        except _BROKEN as error:
            raise LLMStoreError(
                f"The cache in {self._cache.directory} cannot be cleared ({error}). Make it writable."
            ) from None

    def close(self) -> None:
        """Close the file, whichever threads have used it."""
        with self._cache.lock():
            self._cache.close()


def _open(directory: Path, size_limit_bytes: int) -> _OneConnectionCache:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        try:
            return _OneConnectionCache(directory, size_limit_bytes)
        except sqlite3.DatabaseError as error:
            # Locked, read-only or not to be opened: the file itself is sound. Other tables than ours are no cache.
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            _set_aside(directory, error)
            return _OneConnectionCache(directory, size_limit_bytes)
    except (*_BROKEN, ValueError) as error:
        raise LLMStoreError(
            f"The cache folder {directory} cannot be used ({error}); "
            "make it writable, set LLM_CACHE_DIR to another folder, or LLM_CACHE_ENABLED=false"
        ) from None


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
    """Tie a body to its key, so that a damaged or moved entry is a miss."""
    return _digest(f"{_ENTRY_FORM}\x1f{key_text}\x1f{body}")
