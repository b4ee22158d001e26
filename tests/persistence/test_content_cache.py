"""The content cache: JSON only, and whatever is wrong is a miss."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit import Session
from llmkit.errors import LLMStoreError
from llmkit.persistence import content_cache
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import CacheKey
from llmkit.testing import OllamaServer
from llmkit.types import LLMResponse, Route, TokenUsage
from tests.support.forked import run_in_child
from tests.support.reaping import wait_for_reaper

ROUTE = Route.parse("ollama/x")
KEY = CacheKey("w", "sha", ROUTE, "fast", 0)
ANSWER = LLMResponse(text="früh", route=ROUTE, usage=TokenUsage(input_tokens=1))


@pytest.fixture
def cache(tmp_path: Path) -> DiskContentCache:
    made = DiskContentCache(tmp_path / "cache", ttl_s=60, size_limit_bytes=10**7)
    yield made
    made.close()


def _rows(tmp_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(tmp_path / "cache" / "cache.db", isolation_level=None)


def test_what_is_kept_is_found_again_also_by_another_process_object(cache: DiskContentCache, tmp_path: Path) -> None:
    cache.put(KEY, ANSWER)
    other = DiskContentCache(tmp_path / "cache", ttl_s=60, size_limit_bytes=10**7)
    assert cache.get(KEY) == other.get(KEY) == ANSWER
    other.close()


@pytest.mark.parametrize(
    "other",
    [
        CacheKey("v", "sha", ROUTE, "fast", 0),
        CacheKey("w", "sha2", ROUTE, "fast", 0),
        CacheKey("w", "sha", Route.parse("gemini/x"), "fast", 0),
        CacheKey("w", "sha", ROUTE, "quality", 0),
        CacheKey("w", "sha", ROUTE, "fast", 1),
    ],
)
def test_every_part_of_the_key_counts(cache: DiskContentCache, other: CacheKey) -> None:
    cache.put(KEY, ANSWER)
    assert cache.get(other) is None


NAMES = st.text(st.sampled_from(["a", "1", "\x1f", "/"]), min_size=1, max_size=6)
KEYS = st.builds(
    CacheKey,
    NAMES,
    st.just("sha"),
    NAMES.map(lambda model: Route.parse(f"ollama/m{model}")),
    st.just("fast"),
    st.just(0),
)


@given(KEYS, KEYS)
def test_different_keys_have_different_texts(one: CacheKey, other: CacheKey) -> None:
    assert (one.text() == other.text()) == (one == other)


def test_a_locked_cache_is_a_miss(cache: DiskContentCache, tmp_path: Path) -> None:
    rows = _rows(tmp_path)
    rows.execute("BEGIN IMMEDIATE")
    cache.put(KEY, ANSWER)
    rows.execute("ROLLBACK")
    rows.close()
    assert cache.get(KEY) is None


def test_an_answer_expires(tmp_path: Path) -> None:
    cache = DiskContentCache(tmp_path / "short", ttl_s=0.05, size_limit_bytes=10**7)
    cache.put(KEY, ANSWER)
    time.sleep(0.1)
    assert cache.get(KEY) is None
    cache.close()


def test_the_folder_is_for_its_owner_only(cache: DiskContentCache, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("mode", [1, 2, 3, 4, 9])
def test_a_planted_pickle_is_a_miss_and_is_not_run(cache: DiskContentCache, tmp_path: Path, mode: int) -> None:
    cache.put(KEY, ANSWER)
    rows = _rows(tmp_path)
    rows.execute("UPDATE Cache SET mode = ?, value = ?", (mode, pickle.dumps(_Bomb())))
    rows.close()
    assert cache.get(KEY) is None
    assert not Path("exploded").exists()


@given(garbage=st.text(max_size=200) | st.binary(max_size=200) | st.integers(-(2**62), 2**62) | st.none())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_tampered_value_is_a_miss(cache: DiskContentCache, tmp_path: Path, garbage: object) -> None:
    cache.put(KEY, ANSWER)
    rows = _rows(tmp_path)
    rows.execute("UPDATE Cache SET value = ?", (garbage,))
    rows.close()
    assert cache.get(KEY) is None


def test_an_entry_moved_to_another_key_is_a_miss(cache: DiskContentCache, tmp_path: Path) -> None:
    cache.put(KEY, ANSWER)
    theirs = CacheKey("another workspace", "sha", ROUTE, "fast", 0)
    cache.put(theirs, ANSWER.model_copy(update={"text": "theirs"}))
    rows = _rows(tmp_path)
    values = [row[0] for row in rows.execute("SELECT value FROM Cache ORDER BY rowid")]
    rows.execute("UPDATE Cache SET value = ?", (values[1],))
    rows.close()
    assert cache.get(KEY) is None


def test_a_corrupt_file_is_a_miss_and_not_an_error(cache: DiskContentCache, tmp_path: Path) -> None:
    cache.put(KEY, ANSWER)
    cache.close()
    for path in (tmp_path / "cache").glob("cache.db*"):
        path.write_bytes(b"garbage" * 1000)
    assert cache.get(KEY) is None
    cache.put(KEY, ANSWER)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMStoreError, match="LLM_CACHE_DIR"):
        DiskContentCache(tmp_path / "file" / "cache", ttl_s=1, size_limit_bytes=1000)


def test_the_size_limit_drops_the_oldest(tmp_path: Path) -> None:
    cache = DiskContentCache(tmp_path / "small", ttl_s=60, size_limit_bytes=200_000)
    long = ANSWER.model_copy(update={"text": "x" * 10_000})
    keys = [CacheKey("w", str(number), ROUTE, "fast", 0) for number in range(100)]
    for key in keys:
        cache.put(key, long)
    kept = [key for key in keys if cache.get(key) is not None]
    assert 0 < len(kept) < 60
    assert keys[-1] in kept
    cache.close()


def test_erasing_a_workspace_leaves_the_others(cache: DiskContentCache) -> None:
    other = CacheKey("v", "sha", ROUTE, "fast", 0)
    cache.put(KEY, ANSWER)
    cache.put(other, ANSWER)
    assert cache.erase("w") == 1
    assert cache.get(KEY) is None
    assert cache.get(other) == ANSWER


def write_other_tables() -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE Cache (a INTEGER)")
        connection.commit()
        return connection.serialize()


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000, write_other_tables()]
)
def test_a_damaged_cache_is_set_aside_with_one_warning(tmp_path, content):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "cache.db").write_bytes(content)
    with OllamaServer() as server, Session("w", ollama_api_base=server.url, cache_dir=str(folder)) as session:
        with pytest.warns(UserWarning, match="content cache was damaged"):
            session.chat("hi", route="ollama/llama3.2")
        assert session.chat("hi", route="ollama/llama3.2").served_from == "cache"
    (damaged,) = folder.glob("cache.db.damaged-*")
    assert damaged.read_bytes()[:15] == content[:15]  # of other tables the counters in the header differ


def _open_files(cache: DiskContentCache) -> list[str]:
    """The files of the cache that are open in this process."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(cache._cache.directory)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are only listed on Linux")
def test_close_closes_what_every_thread_has_opened(cache: DiskContentCache) -> None:
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)

        def use(number: int) -> LLMResponse | None:
            barrier.wait()
            cache.put(KEY, ANSWER)
            return cache.get(KEY)

        assert list(pool.map(use, range(4))) == [ANSWER] * 4
        assert _open_files(cache)
        cache.close()
        assert _open_files(cache) == []


@pytest.mark.slow
def test_a_cache_that_was_dropped_is_closed(tmp_path: Path) -> None:
    cache = DiskContentCache(tmp_path / "dropped", ttl_s=60, size_limit_bytes=10**7)
    files = cache._cache
    cache.put(KEY, ANSWER)
    del cache
    wait_for_reaper()
    assert files._connection is None


def test_a_forked_child_uses_the_cache_and_leaves_that_of_its_parent_usable(cache: DiskContentCache) -> None:
    cache.put(KEY, ANSWER)
    other = CacheKey("w", "child", ROUTE, "fast", 0)

    def use() -> None:
        assert cache.get(KEY) == ANSWER
        cache.put(other, ANSWER)
        cache.close()

    assert run_in_child(use) == 0
    assert cache.get(other) == cache.get(KEY) == ANSWER


def test_a_file_that_another_process_is_setting_up_is_waited_for(
    cache: DiskContentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first statements on a connection meet its lock; diskcache's own set-up tries again."""
    cache.close()
    monkeypatch.setattr(content_cache, "_PRAGMAS", ("SELECT locked()",))  # an OperationalError, as for a locked file
    with closing(DiskContentCache(tmp_path / "cache", ttl_s=60, size_limit_bytes=10**7)) as other:
        other.put(KEY, ANSWER)
        assert other.get(KEY) == ANSWER
