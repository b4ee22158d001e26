"""Prices from files: your own CSV or TOML, and LiteLLM's list."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmkit.errors import LLMBadRequest
from llmkit.prices.price_list import LISTED_FROM, MILLION, RATES, Price

__all__ = ["read_listed_prices", "read_price_file"]

LIST_FILE = "model_prices_and_context_window_backup.json"
FILE_COLUMNS = ("endpoint", "model", "valid_from", "above_input_tokens", *RATES)
_LISTED = {
    "input_cost_per_token": "input_usd",
    "cache_read_input_token_cost": "cached_input_usd",
    "output_cost_per_token": "output_usd",
    "output_cost_per_reasoning_token": "reasoning_usd",
}
_TIER = re.compile(rf"({'|'.join(_LISTED)})_above_(\d+)k_tokens")


def read_listed_prices(prefixes: Mapping[str, str]) -> list[Price]:
    """Return the prices of the LiteLLM that is installed, whose list is read as data; litellm is not imported.

    Args:
        prefixes: LiteLLM's name of the provider by the name of each endpoint whose prices are wanted.
    """
    found = find_spec("litellm")
    if found is None or not found.submodule_search_locations:
        return []
    folder = Path(found.submodule_search_locations[0])
    listed: Mapping[str, Any] = json.loads((folder / LIST_FILE).read_text(encoding="utf-8"), parse_float=Decimal)
    source = f"litellm {version('litellm')}"
    prices: dict[tuple[str, str, int], Price] = {}
    for name, entry in listed.items():
        for endpoint, prefix in prefixes.items():
            if entry.get("litellm_provider") == prefix:
                model = name.removeprefix(f"{prefix}/")
                prices |= {
                    (endpoint, model, p.above_input_tokens): p for p in _read_entry(endpoint, model, entry, source)
                }
    return [prices[key] for key in sorted(prices)]


def _read_entry(endpoint: str, model: str, entry: Mapping[str, Any], source: str) -> Iterator[Price]:
    tiers: dict[int, dict[str, Decimal]] = {0: {}}
    for key, value in entry.items():
        match = _TIER.fullmatch(key)
        if value is not None and key in _LISTED:
            tiers[0][_LISTED[key]] = Decimal(value) * MILLION
        elif value is not None and match is not None:
            tiers.setdefault(int(match[2]) * 1000, {})[_LISTED[match[1]]] = Decimal(value) * MILLION
    base = tiers[0]
    # LiteLLM lists experiments, and models whose price it does not know, at nothing.
    if not base.get("input_usd") or not base.get("output_usd"):
        return
    for above, rates in sorted(tiers.items()):
        own = {name: (base | rates).get(name) for name in RATES}
        yield Price(endpoint, model, LISTED_FROM, above, **_normalize(own), source=source, is_own=False)


def _normalize(rates: Mapping[str, Decimal | None]) -> dict[str, Any]:
    """Return the rates without trailing zeros, so that equal prices are equal texts."""
    return {name: None if rate is None else Decimal(f"{rate.normalize():f}") for name, rate in rates.items()}


def read_price_file(path: str | Path) -> list[Price]:
    """Return the prices of a CSV or TOML file of yours.

    A CSV file has the columns `endpoint`, `model`, `input_usd` and `output_usd`, and if need be `valid_from` (a date or
    time in UTC), `cached_input_usd`, `reasoning_usd` and `above_input_tokens`. A TOML file has the same keys in tables
    `[[prices]]`.

    Raises:
        LLMBadRequest: The file cannot be read; the message names the row and the column.
    """
    file = Path(path).expanduser()
    try:
        if file.suffix.lower() == ".toml":
            rows = tomllib.loads(file.read_text(encoding="utf-8"), parse_float=Decimal).get("prices", [])
        else:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
    except OSError as error:
        raise LLMBadRequest(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise LLMBadRequest(f"{path} cannot be read: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise LLMBadRequest(f"{path} has no prices: write [[prices]] tables, or a CSV with {', '.join(FILE_COLUMNS)}")
    prices = [_read_row(f"{path}, price {number}", file.name, row) for number, row in enumerate(rows, 1)]
    _refuse_twice(path, prices)
    return prices


def _refuse_twice(path: str | Path, prices: Iterable[Price]) -> None:
    seen: set[tuple[Any, ...]] = set()
    for price in prices:
        key = (price.endpoint, price.model, price.valid_from_utc, price.above_input_tokens)
        if key in seen:
            raise LLMBadRequest(
                f"{path} has two prices of {price.endpoint}/{price.model} from {price.valid_from_utc:%Y-%m-%d} on"
            )
        seen.add(key)


def _read_row(place: str, source: str, row: Any) -> Price:
    if not isinstance(row, Mapping):
        raise LLMBadRequest(f"{place}: write a table with {', '.join(FILE_COLUMNS)}")
    if None in row:  # where `csv` puts them
        raise LLMBadRequest(f"{place} has more values than columns; a comma separates values, a point decimals")
    given = {str(name).strip(): each for name, each in row.items() if each is not None and str(each).strip() != ""}
    unknown = sorted(set(given) - set(FILE_COLUMNS))
    missing = [name for name in ("endpoint", "model", "input_usd", "output_usd") if name not in given]
    if unknown or missing:
        problem = f"unknown column {unknown[0]!r}" if unknown else f"{missing[0]} is missing"
        raise LLMBadRequest(f"{place}: {problem}; the columns are {', '.join(FILE_COLUMNS)}")
    rates = {name: _read_usd(f"{place}: {name}", given[name]) if name in given else None for name in RATES}
    try:
        above = int(str(given.get("above_input_tokens", 0)).replace("_", ""))
    except ValueError:
        above = -1
    if above < 0:
        raise LLMBadRequest(f"{place}: above_input_tokens must be a whole number, not below 0")
    valid_from = _read_time(f"{place}: valid_from", given.get("valid_from", LISTED_FROM))
    names = str(given["endpoint"]).strip(), str(given["model"]).strip()
    return Price(*names, valid_from, above, **_normalize(rates), source=source, is_own=True)


def _read_usd(place: str, value: Any) -> Decimal:
    try:
        usd = Decimal(str(value).strip())
    except InvalidOperation:
        usd = Decimal("NaN")
    if isinstance(value, bool) or not usd.is_finite() or not 0 <= usd < MILLION:
        raise LLMBadRequest(f"{place} must be a price in USD per million tokens, such as 0.30; got {value!r}")
    return usd


def _read_time(place: str, value: Any) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise LLMBadRequest(f"{place} must be a date such as 2026-01-31, or a time in UTC; got {value!r}") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        moment = datetime(value.year, value.month, value.day)  # noqa: DTZ001 - UTC is added below
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
