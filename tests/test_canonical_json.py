"""JSON texts are those of the standard library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.canonical_json import compact_encoder

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_the_text_is_that_of_json_dumps(value: Any, sort_keys: bool) -> None:
    expected = json.dumps(value, separators=(",", ":"), sort_keys=sort_keys)
    assert compact_encoder(sort_keys=sort_keys)(value) == expected


def test_what_json_does_not_know_goes_to_the_default_or_is_refused() -> None:
    assert compact_encoder(default=str)({"at": b"x"}) == json.dumps({"at": b"x"}, separators=(",", ":"), default=str)
    with pytest.raises(TypeError, match="not JSON serializable"):
        compact_encoder()({"at": b"x"})


def test_nan_is_refused_where_it_is_not_allowed() -> None:
    assert compact_encoder()(float("nan")) == "NaN"
    with pytest.raises(ValueError, match="not JSON compliant"):
        compact_encoder(allow_nan=False)([float("nan")])


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        compact_encoder()(value)


def test_without_the_accelerator_the_text_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.encoder.c_make_encoder", None)
    assert compact_encoder(sort_keys=True)({"b": [1, 2.5], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5]}'
