"""Writes docs/errors.md from the error tree, the rule table and the fault table.

Run it with `python -m tests.support.errors_page`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from llmkit import errors
from llmkit.transport.http.error_rules import RULES, Rule
from llmkit.types import LLMProvider
from tests.support.client_faults import CASES, EVERYONE, MAX_RETRIES
from tests.support.errors_help import HELP

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
LABELS = {
    LLMProvider.OLLAMA: "Ollama",
    LLMProvider.GEMINI: "Gemini",
    LLMProvider.OPENAI: "OpenAI",
    LLMProvider.ANTHROPIC: "Anthropic",
}


def page() -> str:
    return "\n".join([*_tree(), *_sections(), *_situations(), *_rules(), ""])


_HEAD = """\
# Errors

Generated from the code by `python -m tests.support.errors_page`; a test fails when it is out of date.

## What can be raised

Every error is an `LLMError`. `code` is what `llm_runs.error_code` holds. A retryable one may go away by itself: the
client tries again, then the router moves on to the next route.

| class | code | retryable | meaning |
|---|---|---|---|"""

_CAUSES = """
## Causes and fixes

`error.docs` names the section of an error."""

_SITUATIONS = f"""
## What happens when

Requests that reach the server for one call, with `LLM_MAX_RETRIES={MAX_RETRIES}`. Each row is a test over HTTP
for each provider, and the named endpoints of its kind behave as it does. An
answer that cannot be used was billed, so it is tried again once, not more.

| situation | providers | error | retryable | requests |
|---|---|---|---|---|"""

_RULES = """
## How a failure is recognised

The first row that fits decides. The status is the one on the wire. Class names, LiteLLM's or the transport's, count
only when nothing came back. A name that is in no row becomes `LLMUnavailable` when it sounds like transport, else
`LLMError`.

| status | body | words | class name | error |
|---|---|---|---|---|"""


def _tree() -> Iterator[str]:
    yield _HEAD
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type):
            meaning = (kind.__doc__ or "").splitlines()[0]
            yield _row(f"`{name}`", f"`{kind.code}`", _yes(kind.retryable), meaning)


def _sections() -> Iterator[str]:
    """Yield a section for each error, at the anchor that `LLMError.docs` names."""
    yield _CAUSES
    for code, help_ in sorted(HELP.items()):
        yield from ("", f"### {code.replace('_', ' ').capitalize()}", "")
        yield from (f"- **Cause:** {help_.cause}", f"- **Check:** {help_.check}", f"- **Fix:** {help_.fix}")


def _situations() -> Iterator[str]:
    yield _SITUATIONS
    for case in CASES:
        who = "all" if case.providers == EVERYONE else ", ".join(LABELS[provider] for provider in case.providers)
        error = "none, an answer" if case.error is None else f"`{case.error.__name__}`"
        retryable = "" if case.error is None else _yes(case.error.retryable)
        yield _row(case.name, who, error, retryable, str(case.requests))


def _rules() -> Iterator[str]:
    yield _RULES
    for rule in RULES:
        yield _row(_statuses(rule.statuses), _body(rule), _words(rule), _names(rule), f"`{rule.error.__name__}`")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _statuses(statuses: Collection[int]) -> str:
    if isinstance(statuses, range):
        return f"{statuses.start} to {statuses.stop - 1}"
    return ", ".join(str(status) for status in sorted(statuses))


def _body(rule: Rule) -> str:
    return "" if rule.is_json is None else "a JSON object" if rule.is_json else "no JSON object"


def _words(rule: Rule) -> str:
    escaped = rule.pattern.replace("|", "\\|")
    return f"`{escaped}`" if escaped else ""


def _names(rule: Rule) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(rule.names))
    return f"{names}, before anything is sent" if rule.was_sent is False else names


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
