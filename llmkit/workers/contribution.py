"""Contributions, which jobs return: counts, and why a job ended. Results of calls are in the store alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

__all__ = ["STOPPED_CODE", "Contribution"]

# Code of the error of a job that was asked to stop.
STOPPED_CODE = "stopped"


@dataclass(frozen=True, slots=True)
class Contribution:
    """The work of one job, small enough for any engine.

    Attributes:
        work: Counts by name.
        is_complete: Whether it saw everything done when it ended.
        stopped_by: The limit of the budget that stopped it.
        stopped_because: The same in words.
        stopped: Code and message of the error for which it gave a route up, by label.
        left_out: Why it took no samples of a route, by label.
        silent: Positions of calls that another process began, and of which nothing was heard any more.
        error: Code and message of the error that ended it.
    """

    work: Mapping[str, int] = field(default_factory=dict)
    is_complete: bool = False
    stopped_by: str | None = None
    stopped_because: str = ""
    stopped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    silent: Sequence[int] = ()
    error: Sequence[str] | None = None

    @property
    def has_called(self) -> bool:
        """Whether it has done a part of the work."""
        return self.work.get("called", 0) > 0

    def write(self) -> bytes:
        """Return it as bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, data: bytes) -> Contribution:
        """Return it from bytes.

        Raises:
            ValueError: They are something else.
        """
        try:
            return cls(**json.loads(data))
        except TypeError as error:  # of other fields, or of none
            raise ValueError(str(error)) from None
