"""Whether routes that are compared were asked the same: the mode of the output, and the schema that was sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from llmkit.eval_ports import EvalResult

__all__ = ["asked_differently"]

SHOWN_DIGITS = 7

Asked: TypeAlias = tuple[str, str | None]
SampleKey: TypeAlias = tuple[str, int]


def asked_differently(results: Iterable[EvalResult], routes: Sequence[str]) -> tuple[str, ...]:
    """A warning when routes were asked different things about the same sample; none when they were not.

    Only valid outputs count: of the others it is not known what was asked last.

    Args:
        results: Of all routes, or of the two that are compared.
        routes: Labels in the order in which they are named.
    """
    by_sample: dict[SampleKey, set[Asked]] = {}
    by_route: dict[str, dict[Asked, None]] = {label: {} for label in routes}
    for result in results:
        # A result without an outcome is of a version that kept no hash.
        if result.output_mode is not None and result.outcome is not None:
            asked = (result.output_mode, result.schema_sha256)
            by_sample.setdefault((result.sample_id, result.epoch), set()).add(asked)
            by_route.setdefault(result.route, {})[asked] = None
    differing = sum(len(asked) > 1 for asked in by_sample.values())
    if not differing:
        return ()
    told = "; ".join(f"{label}: {', '.join(map(_shown, asked))}" for label, asked in by_route.items() if asked)
    warning = (
        f"The routes were asked different things on {differing:,} of {len(by_sample):,} samples, so their difference "
        f"is not the models' alone ({told})."
    )
    return (warning,)


def _shown(asked: Asked) -> str:
    mode, schema = asked
    return f"{mode}, {f'schema {schema[:SHOWN_DIGITS]}' if schema else 'no schema sent'}"
