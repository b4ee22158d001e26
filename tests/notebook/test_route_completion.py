"""Where routes are completed."""

from __future__ import annotations

import pytest

from llmkit.notebook.route_completion import find_route_start, register_completion


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ('s.chat("x", route="', ""),
        ("s.chat('x', route='oll", "oll"),
        ('s.map(City, df, route = "ollama/ll', "ollama/ll"),
        ('s.evaluate(task, ["ollama/llama3.2", "gem', "gem"),
        ('await s.aevaluate(task, routes=["', ""),
        ('s.chat("route', None),
        ('s.chat("x", route="ollama/llama3.2", system="', None),
        ('s.evaluate(task, ["a/b"], name="', None),
        ('open("', None),
    ],
)
def test_a_route_is_expected_in_its_places_only(line: str, start: str | None) -> None:
    assert find_route_start(line) == start


def test_nothing_happens_outside_a_notebook() -> None:
    register_completion()
    register_completion()
