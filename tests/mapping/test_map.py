"""`Session.map`, over real HTTP and a real database file: alignment, columns, resuming, stopping, memory."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import date
from enum import StrEnum
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_index_equal
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMConfigurationError, LLMConstraints, LLMResponse, Route, Session, TokenUsage
from llmkit.batch.progress_bar import bar
from llmkit.mapping import MAP_COLUMNS, MapJob, Meter, plan_map
from llmkit.mapping.rows import Rows
from llmkit.testing import Fault, OllamaServer, Reply
from llmkit.testing.replies import Fault as AnyFault
from llmkit.testing.request_log import RecordedRequest

OWN = list(MAP_COLUMNS)


class City(BaseModel):
    name: str
    people: int


class PolarsFrame:
    """Mirror of the attributes of `polars.LazyFrame` and `polars.DataFrame`, in one."""

    def __init__(self, columns: dict[str, list[object]]) -> None:
        self._columns = columns

    def collect_schema(self) -> None: ...

    def collect(self) -> PolarsFrame:
        return self

    def get_columns(self) -> list[object]:
        return [SimpleNamespace(name=name, to_list=lambda v=v: v) for name, v in self._columns.items()]


class LabelledDataset:
    """Mirror of the attributes of `datasets.Dataset` whose columns have a `ClassLabel`."""

    def __init__(self, columns: dict[str, list[int]], names: list[str]) -> None:
        self._columns = columns
        self.features = dict.fromkeys(columns, SimpleNamespace(int2str=names.__getitem__))

    def to_dict(self) -> dict[str, list[int]]:
        return self._columns


class Splits(dict[str, object]):
    """Mirror of `datasets.DatasetDict`."""

    column_names: ClassVar[dict[str, object]] = {}


def _asked(request: RecordedRequest) -> str:
    """Return the row in a request: the last word of the last message, or the text between `Text:` and `JSON:`."""
    content = request.json["messages"][-1]["content"]
    return content.removeprefix("Text: ").removesuffix("\nJSON:").split()[-1]


def _city(request: RecordedRequest) -> Reply | AnyFault:
    name = _asked(request)
    if name == "bad":
        return Fault.status(400, "no such place")
    return Reply(json.dumps({"name": name, "people": len(name)}), input_tokens=10, output_tokens=2)


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(_city) as server:
        yield server


@pytest.fixture
def session(ollama: OllamaServer) -> Iterator[Session]:
    with Session("study", ollama_api_base=ollama.url, max_retries=0, cache_enabled=False) as opened:
        yield opened


def test_rows_keep_their_index_and_equal_rows_are_asked_once(session: Session, ollama: OllamaServer) -> None:
    texts = pd.Series(["Rome", "bad", "Rome", None, "Bern", float("nan")], index=[7, 7, "a", None, 3.5, 0])
    frame = session.map(City, texts, progress=False)
    assert_index_equal(frame.index, texts.index)
    assert list(frame.columns) == ["name", "people", *OWN]
    assert frame["name"].tolist() == ["Rome", pd.NA, "Rome", pd.NA, "Bern", pd.NA]
    assert frame["people"].tolist() == [4, pd.NA, 4, pd.NA, 4, pd.NA]
    assert frame["status"].tolist() == ["SUCCEEDED", "FAILED", "SUCCEEDED", "SKIPPED", "SUCCEEDED", "SKIPPED"]
    assert frame["error_code"].tolist() == [pd.NA, "bad_request", *[pd.NA] * 4]
    assert "no such place" in frame["error_message"].iloc[1]
    assert frame["served_from"].tolist() == ["provider", pd.NA, "shared", pd.NA, "provider", pd.NA]
    assert len(ollama.calls) == 3
    billed = frame[frame["served_from"] == "provider"]
    assert (billed["input_tokens"].sum(), billed["output_tokens"].sum()) == (20, 4)
    runs = session.runs()
    assert set(frame["run_id"].dropna()) == set(runs["id"])
    assert set(runs["stage"]) == {"map"}
    assert runs["pipeline_run_id"].nunique() == 1


def test_dtypes_do_not_depend_on_the_answers(session: Session) -> None:
    expected = ["string", "Int64", *MAP_COLUMNS.values()]
    for data in (["Rome"], ["bad"], [None], []):
        assert [str(dtype) for dtype in session.map(City, data, progress=False).dtypes] == expected


@pytest.mark.parametrize(
    "index",
    [
        pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2)], names=["x", "y"]),
        pd.date_range("2026-01-01", periods=3, tz="UTC"),
        pd.Index(["x", "x", "x"], name="same"),
        pd.CategoricalIndex(["u", "v", "u"]),
    ],
    ids=["multi", "time", "duplicates", "categorical"],
)
def test_any_index_is_kept(session: Session, index: pd.Index) -> None:
    texts = pd.Series(["a", "b", "a"], index=index)
    frame = session.map("Repeat: {text}", texts, progress=False)
    assert_index_equal(frame.index, index)
    assert texts.to_frame("q").join(frame).shape[0] >= 3


def test_a_prompt_surrounds_or_precedes_the_text_or_names_columns(session: Session, ollama: OllamaServer) -> None:
    frame = pd.DataFrame({"q": ["x", None], "n p": [1, 2]})
    session.map("Say {text} {{now}}", ["x"], progress=False)
    session.map("Summarise.", ["x"], progress=False)
    session.map("{q}: {n p}", frame, progress=False)
    session.map("Sum up", frame, template="{n p} of {q}", progress=False)
    prompts = [call.json["messages"][-1]["content"] for call in ollama.calls]
    assert prompts == ["Say x {now}", "Summarise.\n\nx", "x: 1", "Sum up\n\n1 of x"]


@pytest.mark.parametrize(
    "data",
    [
        pa.table({"name": ["Rome", "Bern"], "size": [1, None]}),
        pa.chunked_array([["Rome", "Bern"]]),
        PolarsFrame({"name": ["Rome", "Bern"], "size": [1, None]}),
        LabelledDataset({"name": [1, 0]}, ["Bern", "Rome"]),
    ],
    ids=["Arrow table", "Arrow column", "polars", "Hugging Face"],
)
def test_a_table_of_another_library_is_a_table(session: Session, data: object) -> None:
    is_column = isinstance(data, pa.ChunkedArray)
    result = session.map(City, data, template=None if is_column else "{name}", route="ollama/llama3.2", progress=False)
    assert result["name"].tolist() == ["Rome", "Bern"]


def test_a_number_above_a_missing_value_stays_whole() -> None:
    rows = Rows.read(pa.table({"name": ["Rome", "Bern"], "size": [1, None]}), template="{name} {size}")
    assert (rows.build_text(0), rows.skipped) == ("Rome 1", 1)


RECORDS = [{"name": "Rome", "size": 3}, {"name": "Bern"}, None]


@pytest.mark.parametrize("data", [RECORDS, pd.Series(RECORDS)], ids=["list", "Series"])
def test_fields_of_dictionaries_are_columns(data: object) -> None:
    named = Rows.read(data, prompt="In {name}")
    assert ([named.build_text(code) for code in range(2)], named.skipped) == (["In Rome", "In Bern"], 1)
    filled = Rows.read(data, template="{name} {size}")
    assert (filled.build_text(0), filled.skipped) == ("Rome 3", 2)
    with pytest.raises(LLMBadRequest, match=r"\{town\}, and there is only \{text\}, \{name\}, \{size\}"):
        Rows.read(data, prompt="In {town}")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([{"name": "Rome", "size": 3}], "{'name': 'Rome', 'size': 3}"),
        ([{"text": "Rome", "size": 3}], "Rome"),
        ([{"name": "Rome"}], "Rome"),
        ([{1: "Rome", 2: 3}], "{1: 'Rome', 2: 3}"),
        ([{"name": "Rome"}, "Bern"], "{'name': 'Rome'}"),
    ],
    ids=["several fields", "a field text", "one field", "keys that are no names", "not all are dictionaries"],
)
def test_text_of_a_dictionary(data: list[object], text: str) -> None:
    """The whole dictionary, unless a field is called `text` or is the only one."""
    assert Rows.read(data).build_text(0) == text


@pytest.mark.parametrize(
    ("data", "remedy"),
    [((each for each in "ab"), "list(data)"), (Splits(train=[]), "data['train']")],
    ids=["lazy", "splits"],
)
def test_what_is_no_table_is_refused_with_the_remedy(session: Session, data: object, remedy: str) -> None:
    with pytest.raises(LLMBadRequest, match=re.escape(remedy)):
        session.map(City, data, progress=False)


def test_braces_in_a_row_are_text(session: Session, ollama: OllamaServer) -> None:
    session.map("Say {text}", ["{text} {0} {{"], progress=False)
    assert ollama.calls[0].json["messages"][-1]["content"] == "Say {text} {0} {{"


class Kind(StrEnum):
    GOOD = "good"


class Inner(BaseModel):
    n: int


class Every(BaseModel):
    flag: bool | None
    ratio: float
    word: Literal["a", "b"]
    kind: Kind
    day: date
    inner: Inner
    tags: list[str]
    status: str


def test_every_kind_of_field_has_a_dtype(session: Session, ollama: OllamaServer) -> None:
    values = {"flag": None, "ratio": 1, "word": "a", "kind": "good", "day": "2026-01-02", "inner": {"n": 2}}
    ollama.script([Reply(json.dumps({**values, "tags": ["t"], "status": "theirs"}))])
    frame = session.map(Every, ["x"], progress=False)
    columns = ["flag", "ratio", "word", "kind", "day", "inner", "tags", "status_"]
    assert list(frame.columns) == [*columns, *OWN]
    dtypes = ["boolean", "Float64", "string", "string", "object", "object", "object", "string"]
    assert [str(frame[name].dtype) for name in columns] == dtypes
    row = frame.iloc[0]
    assert (row["kind"], row["day"], row["inner"], row["tags"]) == ("good", date(2026, 1, 2), {"n": 2}, ["t"])
    assert (row["status_"], row["status"]) == ("theirs", "SUCCEEDED")


def test_a_number_too_large_for_its_dtype_is_kept(session: Session, ollama: OllamaServer) -> None:
    ollama.script([Reply(json.dumps({"name": "x", "people": 2**70}))])
    frame = session.map(City, ["x"], progress=False)
    assert frame["people"].tolist() == [2**70]


def test_a_type_without_fields_is_one_column(session: Session, ollama: OllamaServer) -> None:
    ollama.script([Reply('{"response": ["a", "b"]}')])
    frame = session.map(list[str], ["x"], progress=False)
    assert frame["value"].tolist() == [["a", "b"]]


# --- resuming -----------------------------------------------------------------------------------------------------


def test_an_object_without_fields_has_no_column(session: Session) -> None:
    class Nothing(BaseModel):
        pass

    frame = session.map(Nothing, ["x"], progress=False)
    assert list(frame.columns) == list(MAP_COLUMNS)
    assert frame["status"].tolist() == ["SUCCEEDED"]


def test_the_same_name_asks_only_for_what_failed_or_is_new(session: Session, ollama: OllamaServer) -> None:
    session.map(City, ["Rome", "bad"], name="cities", progress=False)
    before = len(ollama.calls)
    again = session.map(City, ["Bern", "bad", "Rome"], name="cities", progress=False)
    assert {_asked(call) for call in ollama.calls[before:]} == {"Bern", "bad"}
    assert again["served_from"].tolist() == ["provider", pd.NA, "replay"]
    assert again["name"].iloc[2] == "Rome"


def test_a_changed_question_is_asked_again_under_the_same_name(session: Session, ollama: OllamaServer) -> None:
    def asked(what: object, **parameters: object) -> int:
        before = len(ollama.calls)
        session.map(what, ["Rome"], name="n", progress=False, **parameters)
        return len(ollama.calls) - before

    both = frozenset({"ollama", "gemini"})
    assert asked(City) == 1
    assert asked(City, timeout_s=9.0, metadata={"a": 1}) == 0
    assert asked(City, temperature=0.5) == 1
    assert asked(City, instructions="Other.") == 1
    assert asked(City, constraints=LLMConstraints(allowed_providers=both)) == 1
    assert asked(City, constraints=LLMConstraints(allowed_providers=both)) == 0
    assert asked("One {text}") == 1
    assert asked("Two {text}") == 1
    assert asked("One {text}") == 0
    assert asked(City) == 0


def test_without_a_name_the_content_cache_resumes(ollama: OllamaServer) -> None:
    with Session("study", ollama_api_base=ollama.url) as session:
        session.map(City, ["Rome"], progress=False)
        again = session.map(City, ["Rome", "Bern"], progress=False)
    assert again["served_from"].tolist() == ["cache", "provider"]


# --- stopping -----------------------------------------------------------------------------------------------------


def test_a_permanent_failure_stops_the_map(session: Session, ollama: OllamaServer) -> None:
    data = [f"t{number}" for number in range(20)]
    frame = session.map(City, data, route="ollama/missing", concurrency=1, progress=False)
    assert frame["status"].tolist() == ["FAILED"] * 3 + ["NOT_RUN"] * 17
    assert set(frame["error_code"]) == {"model_not_found"}
    assert len(ollama.calls) == 3


def test_a_missing_server_does_not_delay_every_row(ollama: OllamaServer) -> None:
    from llmkit.testing import get_refused_url

    with Session("study", ollama_api_base=get_refused_url(), max_retries=0, cache_enabled=False) as session:
        route = {"route": "ollama/llama3.2", "concurrency": 1, "progress": False}
        frame = session.map("Say {text}", [f"t{number}" for number in range(50)], **route)
        assert set(frame["status"]) == {"FAILED", "NOT_RUN"}
        assert set(frame["error_code"].dropna()) == {"unavailable"}
        assert len(session.runs(status="FAILED")) < 10


def test_the_bar_shows_a_resting_route(
    ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmkit.batch.route_health.USUAL_REST_S", 0.5)
    monkeypatch.setattr(sys.modules[bar.__module__], "_interval_s", lambda: 0.01)
    ollama.script([Reply("fine"), Fault.reset(), Reply("fine")])
    with Session("study", ollama_api_base=ollama.url, max_retries=0, cache_enabled=False) as session:
        frame = session.map("Say {text}", ["a", "b", "c"], route="ollama/llama3.2", concurrency=1)
    assert set(frame["status"]) == {"SUCCEEDED"}
    assert "route_rests_s=1" in capsys.readouterr().err


def test_a_bar_without_progress_is_redrawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.modules[bar.__module__], "_interval_s", lambda: 0.01)
    done = 0
    with bar(lambda: Meter(done, 1000), unit="row") as draw:
        draw()
        time.sleep(0.05)
        done = 500  # after a leap, tqdm itself waits for another that is about as long
        draw()
        time.sleep(0.1)
        capsys.readouterr()
        draw()
        assert "500/1000" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_output_type_that_raises_fails_only_its_row(session: Session, kind: type[BaseException]) -> None:
    class Picky(BaseModel):
        name: str

        def model_post_init(self, _context: object) -> None:
            if self.name == "Rome":
                raise kind("not Rome")

    frame = session.map(Picky, ["Rome", "Bern"], progress=False)
    assert frame["status"].tolist() == ["FAILED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Say {txt}", ["x"], {}), "there is only {text}"),
        (("Say {text!r}", ["x"], {}), "plain name"),
        (("Say {", ["x"], {}), "cannot be read"),
        ((City, pd.DataFrame({"a": [1], "b": [2]}), {}), "template="),
        ((City, pd.DataFrame([[1, 2]], columns=["a", "a"]), {"template": "{a}"}), "same name"),
        ((City, pd.DataFrame([[1, 2]], columns=[1, "1"]), {"template": "{1}"}), "same name"),
        ((City, "Rome", {}), "Series"),
        ((City, 7, {}), "Series"),
        (("x", ["x"], {"max_tokens": 3}), "max_tokens"),
        ((City, ["x"], {"idempotency_key": "k"}), "name="),
        ((City, ["x"], {"examples": [("a", {"name": 1})]}), "example"),
        ((City, ["x"], {"name": " "}), "name of a map"),
        ((City, ["x"], {"concurrency": 0}), "at least 1"),
        ((7, ["x"], {}), "output type"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_sent(
    session: Session, ollama: OllamaServer, arguments: tuple[object, object, dict[str, object]], message: str
) -> None:
    what, data, parameters = arguments
    with pytest.raises(LLMBadRequest, match=message):
        session.map(what, data, progress=False, **parameters)
    assert not ollama.requests


# --- interruptions ------------------------------------------------------------------------------------------------


def _interrupt_when(ollama: OllamaServer, is_time: Callable[[], bool]) -> threading.Thread:
    def watch() -> None:
        for _ in range(600):
            if is_time():
                os.kill(os.getpid(), signal.SIGINT)
                return
            threading.Event().wait(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_an_interrupted_map_keeps_its_result_and_continues(session: Session, ollama: OllamaServer) -> None:
    session.chat("warm up")
    ollama.script(lambda request: Fault.hang() if _asked(request) in {"t5", "t6"} else _city(request))
    data = pd.Series([f"t{number}" for number in range(8)])
    before = len(ollama.calls)
    watcher = _interrupt_when(ollama, lambda: len(ollama.calls) - before >= 7)
    with pytest.raises(KeyboardInterrupt, match="the same call does the rest"):
        session.map(City, data, name="n", concurrency=2, progress=False)
    watcher.join()
    assert ollama.wait_until_idle(60)
    assert sum(call.client_disconnected for call in ollama.calls) == 2
    done = session.partial
    assert isinstance(done, pd.DataFrame)
    assert done["status"].tolist() == ["SUCCEEDED"] * 5 + ["NOT_RUN"] * 3
    ollama.script(_city)
    before = len(ollama.calls)
    whole = session.map(City, data, name="n", progress=False)
    assert {_asked(call) for call in ollama.calls[before:]} == {"t5", "t6", "t7"}
    assert whole["name"].tolist() == data.tolist()
    assert session.partial is None


async def test_amap_keeps_a_partial_result_when_cancelled(session: Session, ollama: OllamaServer) -> None:
    one = await session.amap(City, ["Rome"], name="n", progress=False)
    assert one["name"].tolist() == ["Rome"]
    ollama.script(lambda request: Fault.hang() if _asked(request) == "b" else _city(request))
    task = asyncio.create_task(session.amap(City, ["a", "b"], concurrency=1))
    for _ in range(600):
        if len(ollama.calls) == 3:
            break
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert session.partial["status"].tolist() == ["SUCCEEDED", "NOT_RUN"]
    assert await asyncio.to_thread(ollama.wait_until_idle, 60)


def test_the_bar_shows_rows_failures_and_tokens(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.map(City, ["Rome", "bad", None], progress=True)
    said = capsys.readouterr().err
    assert "3/3" in said
    assert "failed=1, tokens=12" in said


# --- the work itself ----------------------------------------------------------------------------------------------


def _reply(text: str) -> LLMResponse:
    return LLMResponse(text=text, route=Route.parse("ollama/x"), usage=TokenUsage(input_tokens=1, output_tokens=1))


def _plan(data: object, chat: Callable[..., object], concurrency: int = 4) -> MapJob:
    return plan_map(
        "{text}", data, template=None, name=None, concurrency=concurrency, parameters={}, chat=chat, extract=chat
    )


@pytest.mark.slow
async def test_twenty_thousand_rows_need_few_tasks_and_little_memory() -> None:
    most_tasks = 0

    async def chat(text: str, _parameters: dict[str, object]) -> LLMResponse:
        nonlocal most_tasks
        if text.endswith("00"):
            await asyncio.sleep(0)
            most_tasks = max(most_tasks, len(asyncio.all_tasks()))
        return answer

    answer = _reply("yes")
    data = pd.Series([f"row {number}" for number in range(20_000)])
    mapping = _plan(data, chat, concurrency=8)
    gc.collect()
    tracemalloc.start()
    await mapping.work()
    growth, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_tasks <= 10
    assert growth / len(data) < 400  # bytes kept a row: what it said and nothing of how
    assert (mapping.frame()["text"] == "yes").all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.just(np.nan), st.text(max_size=3), st.integers(0, 3)), max_size=12))
def test_every_row_gets_the_answer_to_its_own_text(values: list[object]) -> None:
    asked: list[str] = []

    async def chat(text: str, _parameters: dict[str, object]) -> LLMResponse:
        asked.append(text)
        return _reply(f"re {text}")

    data = pd.Series(values, dtype="object")
    mapping = _plan(data, chat)
    asyncio.run(mapping.work())
    frame = mapping.frame()
    expected = [pd.NA if pd.isna(value) else f"re {value}" for value in values]
    assert frame["text"].tolist() == expected
    assert len(asked) == len(set(asked)) == len({str(value) for value in values if not pd.isna(value)})


# --- the accessor -------------------------------------------------------------------------------------------------


def test_the_accessor_maps_a_column(session: Session, ollama: OllamaServer) -> None:
    frame = pd.DataFrame({"text": ["Rome", None], "n": [1, 2]}, index=["a", "b"])
    through_column = frame["text"].llm.extract(City, name="n", progress=False)
    assert_frame_equal(
        through_column.drop(columns=["served_from", "run_id"]),
        session.map(City, frame["text"], name="n", progress=False).drop(columns=["served_from", "run_id"]),
    )
    said = frame.llm.chat("{n} {text}", session=session, progress=False)
    assert said["status"].tolist() == ["SUCCEEDED", "SKIPPED"]
    assert len(ollama.calls) == 2


def test_the_accessor_without_a_session_states_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.notebook import pandas_accessor as accessor

    accessor.register()
    monkeypatch.setattr(accessor, "_sessions", [])
    accessor.remember_session(Session("gone"))
    gc.collect()
    with pytest.raises(LLMConfigurationError, match="Session"):
        pd.Series(["x"]).llm.chat("Say {text}")


@pytest.mark.slow
def test_a_session_registers_the_accessor_only_if_pandas_is_loaded() -> None:
    code = (
        "import sys, llmkit; s = llmkit.Session(); assert 'pandas' not in sys.modules;"
        "import pandas; t = llmkit.Session(); assert hasattr(pandas.Series, 'llm')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
