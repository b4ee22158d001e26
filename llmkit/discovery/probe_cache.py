"""Results of probes, kept in one small JSON file so that the next process need not pay for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from llmkit.providers.model_facts import Fact, FactBook, ModelFacts
from llmkit.types import LLMProvider, Route, Value, utc_now

__all__ = ["PROBE_LASTS", "ProbeFile", "StoredProbe", "recall_probes"]

FILE_NAME = "probes.json"
PROBE_LASTS = timedelta(days=30)


_SHOWN = ("json_schema", "json_object", "tools", "tools_with_schema", "seed", "images", "usage")


class StoredProbe(Value):
    """Result of one probe.

    Attributes:
        address: Where the server was, without credentials; empty for one that llmkit runs itself.
        digest: The model's at the time; None when it was not known.
        json_schema: Whether the answer was constrained to the schema.
        json_object: Whether a wish for any JSON was obeyed; None, as for all below, when it was not tried or showed
            nothing.
        tools: Whether it called a tool.
        tools_with_schema: Whether it took a tool and a schema in one request.
        seed: Whether equal seeds, and only those, gave equal answers.
        images: Whether it saw the colour of a picture.
        usage: Whether the server counts tokens.
    """

    route: Route
    address: str
    digest: str | None
    json_schema: bool
    json_object: bool | None = None
    tools: bool | None = None
    tools_with_schema: bool | None = None
    seed: bool | None = None
    images: bool | None = None
    usage: bool | None = None
    at_utc: AwareDatetime

    @property
    def facts(self) -> ModelFacts:
        """The facts about the model that this probe supports."""
        shown = {name: getattr(self, name) for name in _SHOWN}
        return ModelFacts(
            **{name: Fact(value, "probed", self.at_utc) for name, value in shown.items() if value is not None}
        )


class _Contents(Value):
    form: Literal["llmkit-probes-1"] = "llmkit-probes-1"
    probes: tuple[StoredProbe, ...] = ()


class ProbeFile:
    """The last probe of each model at each address.

    Never raises: an unreadable or damaged file counts as empty, and a failed write is ignored; the next process
    probes again. Of two processes that write at once the later one wins.

    Args:
        folder: Contains `probes.json`; created with the first probe.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def load(self) -> tuple[StoredProbe, ...]:
        """Return the probes of the last 30 days."""
        try:
            contents = _Contents.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return ()
        oldest = utc_now() - PROBE_LASTS
        return tuple(probe for probe in contents.probes if probe.at_utc >= oldest)

    def keep(self, probe: StoredProbe) -> None:
        """Store this probe in place of an earlier one of the same model at the same address."""
        others = [old for old in self.load() if (old.route, old.address) != (probe.route, probe.address)]
        with suppress(OSError):
            self._write(_Contents(probes=(*others, probe)).model_dump_json(indent=1))

    def _write(self, text: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # `mkstemp` creates it private (0600), and the rename makes sure that no reader sees half a file.
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f"{FILE_NAME}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def recall_probes(file: ProbeFile, facts: FactBook, addresses: Mapping[LLMProvider, str]) -> None:
    """Load the probes that earlier processes made at the addresses in use."""
    for probe in file.load():
        if addresses.get(probe.route.provider) == probe.address:
            facts.probe(probe.route, probe.facts, probe.digest)
