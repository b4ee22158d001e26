"""Named endpoints as data: tables of `llmkit.toml` and of `LLM_ENDPOINTS`, read and checked.

What a kind makes of an endpoint is in `llmkit.providers`; this knows only what all kinds share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from llmkit.types import ENDPOINT_NAME_PATTERN, LLMProfile, LLMProvider

__all__ = [
    "FILE_NAME",
    "TABLE",
    "VARIABLE",
    "BadEndpointError",
    "EndpointSettings",
    "is_loopback",
    "read_file",
    "read_tables",
    "read_text",
    "suggest_name",
]

FILE_NAME = "llmkit.toml"
TABLE = "endpoints"
VARIABLE = "LLM_ENDPOINTS"

ReadVariable = Callable[[str], str | None]

_FIELDS = (
    "kind", "api_base", "api_key_env", "model", "local", "profiles", "requests_per_minute", "tokens_per_minute",
    "headers",
)  # fmt: skip
# Names of the same fields in other tools.
_ELSEWHERE = {
    "base_url": "api_base", "url": "api_base", "host": "api_base", "endpoint": "api_base", "type": "kind",
    "provider": "kind", "model_name": "model", "rpm": "requests_per_minute", "tpm": "tokens_per_minute",
    "profile": "profiles", "extra_headers": "headers", "default_headers": "headers",
}  # fmt: skip
_KEY_FIELDS = frozenset({"api_key", "apikey", "key", "token", "secret", "password", "auth"})
_KEY_ENDINGS = ("_key", "_token", "_secret")
_KEY_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"})
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables are written in capitals; keys have lower-case letters, or begin like this.
_KEY_SHAPE = re.compile(r"(?i:sk|gsk|hf|xai|key|pk|or)[-_](?=.*[a-z0-9]{8})|AIza|.*[a-z].*[0-9].*[a-z]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~\-]+")


class BadEndpointError(Exception):
    """A table that cannot be used; the message names file, table and field, on one line."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """One endpoint, as its table describes it.

    Attributes:
        name: First part of its routes.
        kind: Name of the module that speaks its protocol.
        model: Model of unpinned calls.
        source: The file or variable that contains the table.
        api_base: Its address; empty for the kind's own.
        api_key_env: Name of the variable with its key; empty for an endpoint without a key.
        api_key: The key that the variable had when the settings were read; empty for none.
        local: Whether it stays on your own machines; None when its table does not say.
        profiles: Profiles that prefer it.
        headers: Sent with each request.
    """

    name: LLMProvider
    kind: str
    model: str
    source: str
    api_base: str = field(default="", repr=False)
    api_key_env: str = ""
    api_key: str = field(default="", repr=False)
    local: bool | None = None
    profiles: frozenset[LLMProfile] = frozenset()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @property
    def place(self) -> str:
        """Where it is described, for messages."""
        return f"{self.source}, [{TABLE}.{self.name}]"

    def describe_problem(self, name: str, problem: str) -> str:
        """Return the message about one field."""
        return f"{self.place}, {name}: {problem}"


def is_loopback(url: str) -> bool:
    """Return whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def suggest_name(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Return what was probably meant, or all that is known, to follow a message about an unknown name."""
    near = get_close_matches(name.lower(), known, 1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"


def read_file(path: Path, read_variable: ReadVariable) -> dict[str, EndpointSettings]:
    """Return the endpoints of a file; none when it does not exist.

    Args:
        path: An `llmkit.toml`.
        read_variable: Returns the value of an environment variable, or None.

    Raises:
        BadEndpointError: The file or one of its tables cannot be used; the message names file, table and field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8"
        raise BadEndpointError(f"{path} cannot be read: {why}") from None
    import tomllib

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadEndpointError(f"{path} is not valid TOML: {error}") from None
    for name in content.keys() - {TABLE}:
        raise BadEndpointError(f"{path}, [{name}]: unknown table; {suggest_name(name, (TABLE,))}")
    return read_tables(content.get(TABLE, {}), str(path), read_variable, in_file=True)


def read_text(text: str, read_variable: ReadVariable) -> dict[str, EndpointSettings]:
    """Return the endpoints of `LLM_ENDPOINTS`.

    Raises:
        BadEndpointError: It is not a JSON object of usable tables.
    """
    try:
        tables = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        at = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadEndpointError(f'{VARIABLE} is not JSON{at}; write {{"NAME": {{"kind": ...}}}}') from None
    return read_tables(tables, VARIABLE, read_variable)


def read_tables(
    tables: Any, source: str, read_variable: ReadVariable, *, in_file: bool = False
) -> dict[str, EndpointSettings]:
    """Return the endpoints of parsed tables by name.

    Args:
        tables: By the name of the endpoint.
        source: Named in messages.
        read_variable: Returns the value of an environment variable, or None.
        in_file: Whether the tables may be shared with others, so that they must not contain a password either.

    Raises:
        BadEndpointError: One cannot be used.
    """
    if not isinstance(tables, Mapping):
        raise BadEndpointError(f"{source}, {TABLE}: must contain one table for each endpoint, [{TABLE}.NAME]")
    return {
        str(name): _TableReader(str(name), table, source, read_variable, in_file=in_file).read()
        for name, table in tables.items()
    }


class _TableReader:
    """Reads one table. Its errors never contain a value, which may be a key in the wrong place."""

    def __init__(self, name: str, table: Any, source: str, read_variable: ReadVariable, *, in_file: bool) -> None:
        self._name = name
        self._table = table
        self._source = source
        self._read_variable = read_variable
        self._in_file = in_file

    def read(self) -> EndpointSettings:
        if re.fullmatch(ENDPOINT_NAME_PATTERN, self._name) is None:
            shown = " ".join(self._name.split())[:64]
            raise BadEndpointError(
                f"{self._source}, [{TABLE}.{shown}]: a name has up to 64 letters, digits and _ . - "
                "and begins with a letter or digit"
            )
        if not isinstance(self._table, Mapping):
            # `[endpoints]` with the fields of one endpoint below it.
            raise BadEndpointError(
                f"{self._source}, [{TABLE}]: {self._name} is not a table; write the fields below [{TABLE}.NAME]"
            )
        self._refuse_unknown_fields()
        api_base, api_key_env = self._read_address(), self._read_key_name()
        if api_key_env and urlsplit(api_base).scheme == "http" and not is_loopback(api_base):
            raise self._error("api_base", "plain http would show the key to the network; use https")
        profiles = self._table.get("profiles", [])
        known = tuple(map(str, LLMProfile))
        if not isinstance(profiles, list | tuple) or not all(isinstance(each, str) for each in profiles):
            raise self._error("profiles", f"must be a list of {', '.join(known)}")
        for profile in profiles:
            if profile not in known:
                raise self._error("profiles", f"unknown profile {profile!r}; {suggest_name(profile, known)}")
        local = self._table.get("local")
        if not isinstance(local, bool | None):
            raise self._error("local", "must be true or false")
        return EndpointSettings(
            name=LLMProvider(self._name),
            kind=self._read_string(
                "kind", "names the protocol: openai, anthropic, ollama, gemini or one that a package adds"
            ),
            model=self._read_string("model", "names the model of calls that name none"),
            source=self._source,
            api_base=api_base,
            api_key_env=api_key_env,
            api_key=(self._read_variable(api_key_env) or "").strip() if api_key_env else "",
            local=local,
            profiles=frozenset(map(LLMProfile, profiles)),
            requests_per_minute=self._read_limit("requests_per_minute"),
            tokens_per_minute=self._read_limit("tokens_per_minute"),
            headers=self._read_headers(),
        )

    def _error(self, name: str, problem: str) -> BadEndpointError:
        return BadEndpointError(f"{self._source}, [{TABLE}.{self._name}], {name}: {problem}")

    def _refuse_unknown_fields(self) -> None:
        for name in self._table:
            plain = str(name).lower().replace("-", "_")
            if name in _FIELDS:
                continue
            if plain in _KEY_FIELDS:
                raise self._error(
                    str(name), "a key does not belong here; put it into a variable, and its name into api_key_env"
                )
            meant = f"did you mean {_ELSEWHERE[plain]}?" if plain in _ELSEWHERE else suggest_name(plain, _FIELDS)
            raise self._error(str(name)[:64], f"unknown field; {meant}")

    def _read_string(self, name: str, purpose: str) -> str:
        value = self._table.get(name)
        if value is None:
            raise self._error(name, f"is missing; it {purpose}")
        if not isinstance(value, str) or not value.strip():
            raise self._error(name, f"must be a string that {purpose}")
        return value.strip()

    def _read_address(self) -> str:
        url = self._table.get("api_base", "")
        if not isinstance(url, str) or (url and not re.match(r"https?://[^/\s?#]", url.strip(), re.IGNORECASE)):
            raise self._error("api_base", "must begin with http:// or https:// and a host")
        url = url.strip()
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise self._error("api_base", "is not a valid address") from None
        if url and (parts.fragment or re.search(r"[\s\\]", url) or not (parts.hostname or "")):
            raise self._error("api_base", "must not have a fragment (#) or white space")
        if parts.password is not None and self._in_file:
            raise self._error(
                "api_base", f"contains a password, which does not belong into a file; move the table to {VARIABLE}"
            )
        for name, _value in parse_qsl(parts.query) if self._in_file else ():
            plain = name.lower().replace("-", "_")
            if plain in _KEY_FIELDS or plain.endswith(_KEY_ENDINGS):
                raise self._error(
                    "api_base",
                    f"contains a key ({name[:64]!r}), which does not belong here; use api_key_env or headers",
                )
        return url

    def _read_key_name(self) -> str:
        name = self._table.get("api_key_env", "")
        if not isinstance(name, str):
            raise self._error("api_key_env", "must be the name of a variable")
        name = name.strip().removeprefix("$")
        if name and (_VARIABLE_NAME.fullmatch(name) is None or _KEY_SHAPE.match(name)):
            raise self._error("api_key_env", "must be the name of a variable, and looks like a key itself")
        return name

    def _read_limit(self, name: str) -> int | None:
        limit = self._table.get(name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise self._error(name, "must be a whole number from 1")
        return limit

    def _read_headers(self) -> Mapping[str, str]:
        headers = self._table.get("headers", {})
        if not isinstance(headers, Mapping):
            raise self._error("headers", "must be a table of strings")
        for name, value in headers.items():
            if str(name).lower() in _KEY_HEADERS:
                raise self._error(f"headers.{name}", "a key does not belong here; name its variable in api_key_env")
            is_text = isinstance(value, str) and value.isascii() and value.isprintable()
            if _HEADER_NAME.fullmatch(str(name)) is None or not is_text:
                raise self._error(f"headers.{str(name)[:64]!r}", "must be a string that HTTP can carry")
        return MappingProxyType(dict(headers))
