"""Whether a model stayed the same while an evaluation ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmkit.eval_ports import DigestSeen
from llmkit.types import Route

__all__ = ["digest_notes"]

SHOWN_CHARS = 12


def digest_notes(seen: Iterable[DigestSeen]) -> Iterator[str]:
    """One sentence for each route behind which there was more than one model.

    Args:
        seen: The digests by first appearance within a route.
    """
    by_route: dict[Route, list[DigestSeen]] = {}
    for each in seen:
        by_route.setdefault(each.route, []).append(each)
    for route, digests in by_route.items():
        if len(digests) > 1:
            told = ", then ".join(
                f"{each.digest[:SHOWN_CHARS]} ({each.requests:,} {'request' if each.requests == 1 else 'requests'})"
                for each in digests
            )
            yield f"The model behind {route} changed during the run: {told}. Its results are not of one model."
