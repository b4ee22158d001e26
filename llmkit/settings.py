"""All settings, and the only place that reads or writes the process environment.

Every field is one variable with the prefix `LLM_`; a `.env` file in the working directory is read when present.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    AnyHttpUrl,
    Field,
    SecretStr,
    SkipValidation,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from llmkit.endpoints.tables import (
    FILE_NAME,
    BadEndpointError,
    EndpointSettings,
    is_loopback,
    read_file,
    read_tables,
    read_text,
)
from llmkit.errors import LLMConfigurationError, describe_validation
from llmkit.types import LLMProfile, Name

__all__ = [
    "LLMSettings",
    "RequestPath",
    "RouterPolicy",
    "describe_unused_key",
    "find_endpoint_files",
    "is_loopback",
    "load_settings",
    "prepare_litellm_environment",
]

RouterPolicy = Literal["by_profile", "prefer_local", "prefer_cloud", "cheapest_known"]
RequestPath = Literal["fast", "reference"]
ENV_PREFIX = "LLM_"
# As long as the name of a host may be in DNS.
LONGEST_HOST_NAME = 253

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class LLMSettings(BaseSettings):
    """All settings. Build them with `load_settings()`, which turns bad values into one readable error."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
        populate_by_name=True,
    )

    default_profile: LLMProfile = Field(
        LLMProfile.BALANCED, description="Priority of calls that name none: `fast`, `balanced` or `quality`."
    )
    router_policy: RouterPolicy = Field(
        "by_profile",
        description="Order of providers: by the call's profile, local or cloud ones first (`prefer_local`, "
        "`prefer_cloud`), or those first that charge nothing (`cheapest_known`).",
    )
    concurrency_limit: int = Field(8, ge=1, le=10_000, description="Most concurrent requests over all routes.")
    adaptive_concurrency: bool = Field(
        default=True,
        description="Whether concurrency adapts to what a provider can handle, up to that limit.",
    )
    default_timeout_s: Seconds = Field(
        120,
        description="Longest time one request to a provider may take, in seconds, from first byte sent to last read.",
    )
    stream_chunk_timeout_s: Seconds = Field(
        60,
        description="Longest silence in the middle of a streamed answer, in seconds. Until its first piece, the "
        "timeout of the request counts.",
    )
    request_path: RequestPath = Field(
        "fast",
        description="How calls are made: with LiteLLM's translations alone, or with all of it, slower (`reference`).",
    )
    max_reply_mb: int = Field(
        64, ge=1, le=4096, description="Largest reply that is read from a provider, decompressed, in MB."
    )
    max_file_mb: int = Field(
        512,
        ge=1,
        description="Most memory that the content of a compressed dataset (`.gz`, Parquet, ...), a JSON document or an "
        "exported run may take, in MB.",
    )
    max_retries: int = Field(2, ge=0, le=20, description="Retries on the same route after a retryable failure.")
    retry_max_wait_s: Seconds = Field(
        30, description="Longest wait before a retry, in seconds, whatever the provider asks for."
    )
    cooldown_after_failures: int = Field(
        3, ge=1, description="Consecutive failed calls after which a route is skipped for a while."
    )
    cooldown_s: Seconds = Field(30, description="How long such a route is skipped, in seconds.")

    ollama_api_base: AnyHttpUrl = Field(
        AnyHttpUrl("http://localhost:11434"), repr=False, description="Address of the Ollama server."
    )
    ollama_model: str = Field("llama3.2", min_length=1, description="Ollama model of unpinned calls.")
    ollama_requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests to Ollama in any minute; none for no limit."
    )
    ollama_tokens_per_minute: int | None = Field(
        None, ge=1, description="Most tokens of prompts and answers for Ollama in any minute."
    )
    gemini_model: str = Field("gemini-2.5-flash", min_length=1, description="Gemini model of unpinned calls.")
    gemini_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LLM_GEMINI_API_KEY", "GEMINI_API_KEY"),
        description="Key for Gemini; GEMINI_API_KEY is used when this is not set.",
    )
    gemini_api_base: AnyHttpUrl | None = Field(
        None,
        repr=False,
        description="Another address for Gemini, a proxy or a stand-in; plain http only to this machine.",
    )
    gemini_requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests to Gemini in any minute; none for no limit."
    )
    gemini_tokens_per_minute: int | None = Field(
        None, ge=1, description="Most prompt tokens for Gemini in any minute; Google does not count answers."
    )
    openai_model: str = Field("gpt-4.1-mini", min_length=1, description="OpenAI model of unpinned calls.")
    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LLM_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key for OpenAI, which is an endpoint as soon as it has one; OPENAI_API_KEY is used when this is "
        "not set.",
    )
    openai_api_base: AnyHttpUrl | None = Field(
        None,
        repr=False,
        description="Another address for OpenAI, a proxy or a stand-in, with `/v1`; plain http only to this machine.",
    )
    openai_requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests to OpenAI in any minute; none for no limit."
    )
    openai_tokens_per_minute: int | None = Field(
        None, ge=1, description="Most tokens of prompts and answers for OpenAI in any minute."
    )
    anthropic_model: str = Field("claude-sonnet-4-6", min_length=1, description="Anthropic model of unpinned calls.")
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LLM_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Key for Anthropic, which is an endpoint as soon as it has one; ANTHROPIC_API_KEY is used when "
        "this is not set.",
    )
    anthropic_api_base: AnyHttpUrl | None = Field(
        None,
        repr=False,
        description="Another address for Anthropic, a proxy or a stand-in; plain http only to this machine.",
    )
    anthropic_requests_per_minute: int | None = Field(
        None, ge=1, description="Most requests to Anthropic in any minute; none for no limit."
    )
    anthropic_tokens_per_minute: int | None = Field(
        None, ge=1, description="Most tokens of prompts and answers for Anthropic in any minute."
    )
    endpoints: Annotated[Mapping[str, EndpointSettings], NoDecode, SkipValidation] = Field(
        {},
        repr=False,
        description="More endpoints by name, as JSON; tables `[endpoints.NAME]` of `llmkit.toml` are read too.",
    )
    local_model: str = Field("gemma-3-270m", min_length=1, description="Local model of unpinned calls.")
    local_context_tokens: int = Field(4096, ge=256, le=32_768, description="Context window of the local model.")
    local_parallel: int = Field(2, ge=1, le=16, description="Concurrent calls that the local model answers.")

    warm_up: bool = Field(
        default=True, description="Whether a new session loads litellm in the background, so that no call waits for it."
    )
    show_answers: bool = Field(
        default=True,
        description="Whether `map` and `evaluate` show the latest answers below their progress bar, in a notebook or a "
        "terminal.",
    )
    facts_ttl_s: Seconds = Field(
        60,
        description="How long what Ollama reports about a model (context, tools, digest) stays valid, in seconds.",
    )

    persist_runs: bool = Field(default=True, description="Whether every call is recorded in `llm_runs`.")
    store_payloads: bool = Field(
        default=True,
        description="Whether answers and outputs are stored whole; without them a finished call cannot be replayed.",
    )
    database_url: str = Field(
        "sqlite:///llmkit.db",
        min_length=1,
        repr=False,
        description="Where runs are stored: an SQLite file, or PostgreSQL.",
    )
    workspace_id: Name = Field("default", description="Workspace of the command line and of `Session()`.")
    host_name: str | None = Field(
        None,
        description="Name of this machine in the store, with every request it sends; by default its own host name.",
    )
    abandoned_after_s: Seconds = Field(
        120, description="Silence after which another machine's unfinished call counts as dead, in seconds."
    )
    cache_enabled: bool = Field(default=True, description="Whether equal requests are answered from the content cache.")
    cache_dir: Path = Field(Path(".llmkit/cache"), description="Folder of the content cache.")
    cache_ttl_s: float = Field(
        2_592_000, gt=0, allow_inf_nan=False, description="How long a cached answer is served, in seconds (30 days)."
    )
    cache_size_limit_mb: int = Field(1024, ge=1, description="Size above which the oldest cached answers are dropped.")

    @property
    def host(self) -> str:
        """The name of this machine as the store has it."""
        return (self.host_name or platform.node() or "unknown")[:LONGEST_HOST_NAME]

    @field_validator("endpoints", mode="before")
    @classmethod
    def _read_endpoints(cls, given: Any) -> Mapping[str, EndpointSettings]:
        """Add the tables of both files to the given ones; the first place that describes a name decides."""
        try:
            if isinstance(given, str):
                given = read_text(given, _read_variable)
            elif not all(isinstance(each, EndpointSettings) for each in getattr(given, "values", lambda: [given])()):
                given = read_tables(given, "endpoints=", _read_variable)
            files = [read_file(path, _read_variable) for path in find_endpoint_files()]
        except BadEndpointError as error:
            raise LLMConfigurationError(str(error)) from None
        return {name: each for found in reversed([given, *files]) for name, each in found.items()}

    @field_validator("gemini_api_key", "openai_api_key", "anthropic_api_key")
    @classmethod
    def _key_that_can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value().strip() if key is not None else ""
        if not text.isascii() or not text.isprintable() or set(text) & set(" \"'"):
            raise ValueError("contains a blank, a quote or another character that no key has; copy it again")
        return SecretStr(text) if text else None

    @field_validator("ollama_api_base", "gemini_api_base", "openai_api_base", "anthropic_api_base", mode="before")
    @classmethod
    def _require_scheme(cls, url: Any) -> Any:
        if isinstance(url, str) and url.strip() and not re.match(r"https?://", url.strip(), re.IGNORECASE):
            raise ValueError("must begin with http:// or https://, for example http://localhost:11434")
        return url

    @field_validator("ollama_api_base", "gemini_api_base")
    @classmethod
    def _refuse_query(cls, url: AnyHttpUrl | None) -> AnyHttpUrl | None:
        # Paths are appended to the address, so they would end up in its query or fragment.
        if url is not None and (url.query is not None or url.fragment is not None):
            raise ValueError("must not have a query (?) or a fragment (#); remove it")
        return url

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, url: str) -> str:
        scheme = url.split(":", 1)[0].split("+", 1)[0]
        if scheme not in {"sqlite", "postgresql", "postgres"}:
            raise ValueError("must begin with sqlite:/// or postgresql://")
        if url in {"sqlite://", "sqlite:///:memory:", "sqlite:///"}:
            raise ValueError("must name a file, for example sqlite:///llmkit.db; an in-memory database is lost at once")
        if scheme != "sqlite":
            return url
        if "?" in url:
            # SQLAlchemy would read a query there and drop it without a word.
            raise ValueError("must not contain a question mark: queries such as ?mode=ro are not supported")
        prefix, separator, path = url.partition(":///")
        return f"{prefix}{separator}{_expand_path(path)}" if separator else url

    @field_validator("cache_dir")
    @classmethod
    def _expand_cache_dir(cls, folder: Path) -> Path:
        return Path(_expand_path(str(folder)))

    @model_validator(mode="after")
    def _key_goes_only_where_it_is_safe(self) -> Self:
        for name in ("gemini_api_base", "openai_api_base", "anthropic_api_base"):
            base = getattr(self, name)
            if base is not None and base.scheme == "http" and not is_loopback(str(base)):
                raise ValueError(
                    f"{ENV_PREFIX}{name.upper()}: plain http would show the key to the network; "
                    "use https, or an address on this machine"
                )
        return self

    def __repr__(self) -> str:
        # Only what differs from the defaults. Secrets and addresses, which may contain one, are not in `__repr_args__`.
        fields = type(self).model_fields
        changed = [
            f"{name}={value!r}" for name, value in self.__repr_args__() if name and value != fields[name].default
        ]
        return f"LLMSettings({', '.join(changed)})"


def load_settings(**overrides: Any) -> LLMSettings:
    """Read the settings from keyword arguments, then the environment, then `.env`, then defaults.

    Args:
        **overrides: Field names of `LLMSettings` and their values.

    Raises:
        LLMConfigurationError: A value is bad or a name is unknown. The message names each variable and shows no value.
    """
    unknown = sorted(set(overrides) - set(LLMSettings.model_fields))
    if unknown:
        raise LLMConfigurationError(f"Unknown setting: {', '.join(unknown)}. {_suggest_settings(unknown)}")
    try:
        return LLMSettings(**overrides)
    except ValidationError as error:
        lines = [_name_variable(line) for line in describe_validation(error)]
        raise LLMConfigurationError("\n".join(["A setting has a bad value:", *lines])) from None
    except SettingsError as error:
        # Its message names the field and its source, not the value.
        raise LLMConfigurationError(f"A setting cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise LLMConfigurationError("The file .env in the working directory is not UTF-8; save it as that") from None


def find_endpoint_files() -> tuple[Path, ...]:
    """Return the places of `llmkit.toml`, existing or not: the working directory, then the user's folder."""
    folder = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME")
    try:
        own = Path(folder) if folder else Path.home() / ".config"
    except RuntimeError:  # a user without a home
        return (Path(FILE_NAME),)
    return (Path(FILE_NAME), own / "llmkit" / FILE_NAME)


def _read_variable(name: str) -> str | None:
    """Return the value of a variable from the environment, else from `.env`, where other settings may be too."""
    value = os.environ.get(name)
    if value or not Path(".env").is_file():
        return value
    from dotenv import dotenv_values

    return dotenv_values(".env", interpolate=False).get(name)


def describe_unused_key(settings: LLMSettings, *, is_refused: bool) -> str | None:
    """Return a sentence about a key that can be read now and is not in these settings: they were read before it was.

    Args:
        settings: Those in force.
        is_refused: Whether a provider refused the key that they have, so that another one may help.
    """
    try:
        now = LLMSettings()
    except (LLMConfigurationError, ValidationError, SettingsError, OSError, UnicodeError):
        return None
    for name, field in LLMSettings.model_fields.items():
        old, new = getattr(settings, name), getattr(now, name)
        if "SecretStr" not in str(field.annotation) or not new or old == new or (old and not is_refused):
            continue
        alias = field.validation_alias
        variables = alias.choices if isinstance(alias, AliasChoices) else [f"{ENV_PREFIX}{name.upper()}"]
        variable = next((each for each in map(str, variables) if os.environ.get(each)), None)
        place = "the file .env" if variable is None else "the environment"
        found = f"{variable or variables[0]} is set in {place}"
        return f"{found}{', to another key' if old else ' and not in this session'}: open a new session"
    for name, endpoint in now.endpoints.items():
        before = settings.endpoints.get(name)
        if before is not None and endpoint.api_key and not before.api_key:
            return f"{endpoint.api_key_env} is set now, and was not when this session began: open a new session"
        if before is None:
            return f"{endpoint.place} is new: open a new session"
    return None


# Names of the same settings in other tools.
_ELSEWHERE = {
    "api_key": "gemini_api_key",
    "openai_base_url": "openai_api_base",
    "anthropic_base_url": "anthropic_api_base",
    "base_url": "ollama_api_base",
    "concurrency": "concurrency_limit",
    "database": "database_url",
    "db": "database_url",
    "ollama_base_url": "ollama_api_base",
    "ollama_host": "ollama_api_base",
    "ollama_url": "ollama_api_base",
    "timeout": "default_timeout_s",
    "timeout_s": "default_timeout_s",
}


def _expand_path(path: str) -> str:
    """Expand `~` and variables, once and for every user of the path: libraries differ in what they expand later.

    Raises:
        ValueError: A variable is not set, or there is no such user.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 - pathlib would normalise the rest too
    unset = re.search(r"\$\{?([A-Za-z_]\w*)", expanded)
    if unset is not None:
        raise ValueError(f"uses the variable {unset[1]}, which is not set")
    if expanded.startswith("~"):
        raise ValueError(
            f"begins with {expanded.split('/')[0]}, which is no user's home; write ./~ for a folder of that name"
        )
    return expanded


def _suggest_settings(unknown: Sequence[str]) -> str:
    """Return a sentence with the settings that were probably meant, or with all of them."""
    known = sorted(LLMSettings.model_fields)
    near = [_ELSEWHERE.get(name) or next(iter(get_close_matches(name, known, 1, cutoff=0.7)), None) for name in unknown]
    if None in near:
        return f"Known settings: {', '.join(known)}"
    return f"Did you mean {', '.join(filter(None, near))}?"


def _name_variable(line: str) -> str:
    """Name the environment variable instead of the field."""
    field, separator, problem = line.partition(": ")
    if field in LLMSettings.model_fields:
        return f"  {ENV_PREFIX}{field.upper()}{separator}{problem}"
    return f"  {line}"


def prepare_litellm_environment() -> None:
    """Set what litellm reads while it is imported, unless the user has set it.

    Without these it fetches lists of prices and headers over the network, and loads `.env` files from every folder
    upwards.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment for a child process: this one's without provider keys, plus `extra`."""
    keep = {name: value for name, value in os.environ.items() if not name.upper().endswith(("_API_KEY", "_TOKEN"))}
    return keep | extra


def worker_environment(settings: LLMSettings) -> dict[str, str]:
    """Return the environment for a worker process on this machine: this one's, and the settings, keys and all."""
    variables = dict(os.environ)
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, Mapping):
            value = json.dumps({each: _describe_endpoint(endpoint) for each, endpoint in value.items()})
        if value is not None:
            variables[f"{ENV_PREFIX}{name.upper()}"] = str(value)
    if settings.database_url.startswith("sqlite"):
        prefix, _, path = settings.database_url.partition(":///")
        variables[f"{ENV_PREFIX}DATABASE_URL"] = f"{prefix}:///{Path(path).absolute()}"
    return variables


def _describe_endpoint(endpoint: EndpointSettings) -> dict[str, Any]:
    # The key is read from its variable, as it is here.
    found = {each.name: getattr(endpoint, each.name) for each in fields(endpoint)}
    found |= {"headers": dict(endpoint.headers), "profiles": sorted(endpoint.profiles)}
    left_out = ("name", "source", "api_key")
    return {name: value for name, value in found.items() if name not in left_out and value not in (None, "", [], {})}


def is_in_environment(*names: str) -> bool:
    """Return whether one of these variables is set."""
    return any(name in os.environ for name in names)
