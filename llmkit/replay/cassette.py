"""Recorded answers in a file for people and for version control, and a client that answers from nothing else.

A cassette is JSONL: a line about the file, then one line for each recorded call. A call is found by the hash of what
was asked, so prompts can be kept redacted and shortened; answers are redacted too, inside JSON text by text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from pydantic import Field, ValidationError

from llmkit import errors
from llmkit.calls.request_hash import prompt_sha256, request_parameters
from llmkit.errors import LLMBadRequest, LLMError, LLMNoRecording, LLMUnavailable, describe_validation
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.providers import ProviderSpec, collect_secrets, make_absent_spec
from llmkit.redaction import redact, request_preview
from llmkit.settings import LLMSettings
from llmkit.types import (
    Attempt,
    AttemptStatus,
    FinishReason,
    LLMProvider,
    LLMRequest,
    Logprobs,
    Route,
    TokenUsage,
    ToolCall,
    Value,
    utc_now,
)

__all__ = [
    "RECORDING_COLUMNS",
    "Cassette",
    "CassetteClient",
    "Recording",
    "always_set_up",
    "redact_answer",
    "replaying",
]

FORM: Final = "llmkit-cassette-1"
RECORDING_COLUMNS: Final[Mapping[str, Literal["string", "Int64"]]] = {
    "line": "Int64",
    "asked": "Int64",
    "route": "string",
    "prompt": "string",
    "answer": "string",
    "error_code": "string",
    "prompt_sha256": "string",
}
"""Of `Session.recordings()`."""

_SHOWN_CHARS = 60
_NEVER = 2**31


class Recording(Value):
    """One recorded call.

    Attributes:
        prompt: The redacted beginning of the conversation, the latest message first; not what is compared.
        parameters: The request without messages, route and profile, from `request_parameters`.
        requested_route: The route that was pinned.
        route: Who answered; None for a failure without one.
        error_code: For a call that failed.
        prompt_sha256: Hash of everything that was asked: by it a call is found.
    """

    prompt: str
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    requested_route: str | None = None
    route: Route | None = None
    response_model: str | None = None
    profile: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    epoch: int = 0
    finish_reason: FinishReason = "unknown"
    usage: TokenUsage = TokenUsage()
    latency_ms: float = 0.0
    cost_usd: float | None = None
    logprobs: Logprobs | None = None
    warnings: tuple[str, ...] = ()
    prompt_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def key(self) -> tuple[str, int]:
        """Return the key that finds a call."""
        return self.prompt_sha256, self.epoch


@dataclass(slots=True)
class Cassette:
    """The recordings of a file, and what has been asked of them.

    Attributes:
        recordings: In the order of the file.
        asked: How often each was asked for.
    """

    recordings: Sequence[Recording]
    asked: list[int] = field(init=False)
    _places: dict[tuple[str, int], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.asked = [0] * len(self.recordings)
        self._places = {}
        for place, recording in enumerate(self.recordings):
            self._places.setdefault(recording.key, []).append(place)

    @property
    def routes(self) -> Iterator[Route]:
        """Every route that a recording names, as pinned or as the one that answered."""
        for each in self.recordings:
            if each.requested_route is not None:
                yield Route.parse(each.requested_route)
            if each.route is not None:
                yield each.route

    @property
    def columns(self) -> Mapping[str, Literal["string", "Int64"]]:
        """Columns of `rows()` and their dtypes: `RECORDING_COLUMNS`."""
        return RECORDING_COLUMNS

    @classmethod
    def read(cls, path: Path) -> Cassette:
        """Read a file.

        Raises:
            LLMBadRequest: It is not there, or not a cassette; the message names file and line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LLMBadRequest(
                f"The cassette {path} cannot be read ({type(error).__name__}); make one with `llmkit cassette record`"
            ) from None
        if not lines or _object(path, 1, lines[0]).get("form") != FORM:
            raise LLMBadRequest(f"{path} is not a cassette of this version of llmkit; its first line must name {FORM}")
        return cls([_recording(path, number, line) for number, line in enumerate(lines[1:], start=2)])

    def write(self, file: TextIO, **about: Any) -> None:
        """Write all recordings, and `about` in the first line."""
        for line in ({"form": FORM, **about}, *(each.model_dump(mode="json", exclude_defaults=True) for each in self)):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def __iter__(self) -> Iterator[Recording]:
        return iter(self.recordings)

    def take(self, key: tuple[str, int]) -> Recording | None:
        """Return the next recording of a call; the last one again when all were taken."""
        places = self._places.get(key)
        if places is None:
            return None
        place = next((place for place in places if not self.asked[place]), places[-1])
        self.asked[place] += 1
        return self.recordings[place]

    def rows(self) -> list[tuple[Any, ...]]:
        """Yield the recordings with the columns of `RECORDING_COLUMNS`."""
        return [
            (number, asked, each.route and str(each.route), each.prompt, each.text, each.error_code, each.prompt_sha256)
            for number, (each, asked) in enumerate(zip(self.recordings, self.asked, strict=True), start=2)
        ]

    def difference(self, request: LLMRequest, profile: str, secrets: Iterable[str] = ()) -> str:
        """Describe the first difference from the nearest recording, without secrets."""
        wanted = _fields(request, profile, secrets)
        if not self.recordings:
            return "the cassette is empty"
        scored = ((_likeness(_fields_of(each), wanted), -place) for place, each in enumerate(self.recordings))
        place = -max(scored)[1]
        found = _fields_of(self.recordings[place])
        for name in wanted | found:
            if found.get(name) != wanted.get(name):
                then, now = _format_value(found.get(name)), _format_value(wanted.get(name))
                if name == "messages":
                    then, now = _around_difference(str(found[name]), str(wanted[name]))
                return f"the nearest one (line {place + 2}) differs in {name}: recorded {then}, asked {now}"
        return f"the nearest one (line {place + 2}) differs in a part of its messages that it does not show"


class CassetteClient:
    """A `ModelClient` that answers from a cassette and sends nothing.

    Args:
        cassette: The recordings.
        settings: The default profile counts in the hash of a call.
    """

    def __init__(self, cassette: Cassette, settings: LLMSettings) -> None:
        self._cassette = cassette
        self._profile = settings.default_profile
        self._secrets = collect_secrets(settings)

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,  # noqa: ARG002 (the service puts in the answer, which is complete)
    ) -> ClientReply | NotSent:
        """Return the recorded answer, or the recorded failure.

        Raises:
            LLMNoRecording: There is none; the message names what differs from the nearest.
            LLMUnavailable: Another route answered when it was recorded; the router goes on to that one.
            LLMError: As recorded.
        """
        recording = self._cassette.take((prompt_sha256(request, self._profile), request.epoch))
        if recording is None:
            difference = self._cassette.difference(request, str(request.profile or self._profile), self._secrets)
            raise LLMNoRecording(
                f"No recording answers this call: {difference}. Undo the change, or record again with "
                "`llmkit cassette record`",
                provider=route.provider,
                model=route.model,
            )
        error = _error(recording, route)
        not_sent = await before_send()
        if not_sent is not None:
            return not_sent
        log.add(_attempt(recording, route, log, error))
        if error is not None:
            raise error
        return ClientReply(
            text=recording.text,
            tool_calls=recording.tool_calls,
            finish_reason=recording.finish_reason,
            usage=recording.usage,
            response_model=recording.response_model,
            cost_usd=recording.cost_usd,
            warnings=recording.warnings,
            latency_ms=recording.latency_ms,
            logprobs=recording.logprobs,
        )

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def replaying(settings: LLMSettings, scratch: Path | None) -> LLMSettings:
    """Return settings under which only the cassette answers: no cache, and no circuit breaker.

    Args:
        settings: As given.
        scratch: Where the database goes; None leaves it where the settings say.
    """
    changes: dict[str, Any] = {"cache_enabled": False, "cooldown_after_failures": _NEVER}
    if scratch is not None:
        changes["database_url"] = f"sqlite:///{scratch / 'replay.db'}"
    return settings.model_copy(update=changes)


def always_set_up(
    providers: Mapping[LLMProvider, ProviderSpec], recorded: Iterable[Route] = ()
) -> dict[LLMProvider, ProviderSpec]:
    """Return endpoints that need neither key nor package, because recorded answers replace their calls.

    Args:
        providers: The endpoints of the settings.
        recorded: Routes of the recordings: an endpoint may have been removed from the settings since.
    """
    gone = {route.provider: make_absent_spec(route) for route in recorded if route.provider not in providers}
    known = {**providers, **gone}
    return {name: replace(spec, configuration_problem=lambda _settings: None) for name, spec in known.items()}


def redact_answer(text: str, secrets: Iterable[str] = ()) -> str:
    """Return an answer without secrets and personal data; one that is JSON stays JSON. Bare numbers in JSON stay."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return redact(text, secrets)
    if not isinstance(value, dict | list):
        return redact(text, secrets)
    clean = _redact_value(value, tuple(secrets))
    return text if clean == value else json.dumps(clean, ensure_ascii=False)


def _redact_value(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, list):
        return [_redact_value(part, secrets) for part in value]
    if isinstance(value, dict):
        return {name: _redact_value(part, secrets) for name, part in value.items()}
    return value


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LLMBadRequest(f"{path}, line {number}: this is not a JSON object; take the file from version control")
    return value


def _recording(path: Path, number: int, line: str) -> Recording:
    try:
        return Recording.model_validate(_object(path, number, line))
    except ValidationError as error:
        raise LLMBadRequest(f"{path}, line {number}: {'; '.join(describe_validation(error))}") from None


def _error(recording: Recording, route: Route) -> LLMError | None:
    """Return the recorded failure, or why this route has no answer. No wait is needed before reading a file again."""
    where: dict[str, Any] = {"provider": route.provider, "model": route.model, "retry_after_s": 0.0}
    if recording.error_code is None:
        if recording.route == route:
            return None
        return LLMUnavailable(
            f"{route} did not answer when this was recorded, {recording.route} did; a session that replays it needs "
            "the same default models",
            **where,
        )
    kinds = (getattr(errors, name) for name in errors.__all__)
    by_code = {kind.code: kind for kind in kinds if isinstance(kind, type) and issubclass(kind, LLMError)}
    kind = by_code.get(recording.error_code, LLMError)
    message = recording.error_message or "failed when it was recorded"
    try:
        return kind(message, **where)
    except TypeError:  # one that is made of other errors
        return LLMUnavailable(message, **where)


def _attempt(recording: Recording, route: Route, log: AttemptLog, error: LLMError | None) -> Attempt:
    """Return the spending of the recorded call, so that a replay reports the costs of the recording."""
    answered = recording.route == route
    return Attempt(
        route=route,
        number=log.next_number,
        status=AttemptStatus.SUCCEEDED if error is None else AttemptStatus.FAILED,
        started_at_utc=utc_now(),
        latency_ms=recording.latency_ms if answered else 0.0,
        usage=recording.usage if answered else TokenUsage(),
        finish_reason=recording.finish_reason if error is None else None,
        response_model=recording.response_model,
        cost_usd=recording.cost_usd if answered else None,
        error_code=None if error is None else error.code,
    )


# --- the nearest recording ----------------------------------------------------------------------------------------


def _fields(request: LLMRequest, profile: str, secrets: Iterable[str]) -> dict[str, Any]:
    """Return the fields that are compared with a recording, in the order in which differences are reported."""
    route = None if request.route is None else str(request.route)
    return {
        "route": route,
        "profile": profile,
        **request_parameters(request),
        "epoch": request.epoch,
        "messages": request_preview(request, secrets),
    }


def _fields_of(recording: Recording) -> dict[str, Any]:
    return {
        "route": recording.requested_route,
        "profile": recording.profile,
        **recording.parameters,
        "epoch": recording.epoch,
        "messages": recording.prompt,
    }


def _likeness(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[float, int]:
    """Return the messages weigh most: who changed a parameter still asks the same."""
    matcher = SequenceMatcher(None, found["messages"], wanted["messages"], autojunk=False)
    alike = 1.0 if found["messages"] == wanted["messages"] else matcher.quick_ratio()
    return round(alike, 2), sum(found.get(name) == value for name, value in wanted.items())


def _format_value(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:_SHOWN_CHARS]


def _around_difference(then: str, now: str) -> tuple[str, str]:
    """Return both texts from a little before the place where they differ."""
    same = next((at for at, (one, other) in enumerate(zip(then, now, strict=False)) if one != other), 0)
    start = max(0, same - _SHOWN_CHARS // 3)
    return repr(then[start : start + _SHOWN_CHARS]), repr(now[start : start + _SHOWN_CHARS])
