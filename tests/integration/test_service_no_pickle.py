"""Nothing of llmkit's is unpickled: in this suite reading a pickle fails (spec 9.2, `tests/support/no_pickle.py`)."""

from __future__ import annotations

import io
import pickle

import diskcache
import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.testing import OllamaServer


class City(BaseModel):
    name: str


def test_reading_a_pickle_fails_here() -> None:
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(pickle.dumps("harmless"))
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.Unpickler(io.BytesIO(pickle.dumps("harmless"))).load()
    with diskcache.Cache("stock") as stock:
        stock["key"] = {"a", "b"}
        with pytest.raises(AssertionError, match="unpickled"):
            _ = stock["key"]


def test_a_session_answers_replays_and_caches_all_the_same(database_url: str) -> None:
    with OllamaServer() as server:
        for _ in range(2):
            with Session("lab", database_url=database_url, ollama_api_base=server.url) as session:
                session.chat("q")
                session.chat("q", idempotency_key="k")
                session.extract(City, "Rome")
                assert session.runs().notna().any(axis=None)
        assert server.call_count == 2
