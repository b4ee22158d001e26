"""Notes that a reader of the numbers needs, one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from llmkit.eval_ports import DigestSeen, EvalResult, EvalRun, HostDigest, HostUse
from llmkit.evals.budget import BudgetUse
from llmkit.evals.decide.stopping import Decision
from llmkit.evals.provenance import find_different_digests
from llmkit.evals.results import FAILED, IN_PROGRESS, SCORER_FAILED, Work, fell_back
from llmkit.types import Route

__all__ = [
    "describe_request_differences",
    "note_budget",
    "note_decision",
    "note_different_hosts",
    "note_digests",
    "note_direction",
    "note_dominant_group",
    "note_doubt",
    "note_failures",
    "note_fallbacks",
    "note_hosts",
    "note_stops",
    "note_supplied",
    "note_work",
]

# Enough of a hash to tell schemas and models apart.
SHOWN_DIGITS = 7
SHOWN_CHARS = 12
SHOWN_HOSTS = 5
DOMINANT_SHARE = 0.5

# Output mode and hash of the schema that was sent.
RequestShape: TypeAlias = tuple[str, str | None]
SampleKey: TypeAlias = tuple[str, int]


def note_work(work: Work | None) -> Iterator[str]:
    """Note how much work this call did; nothing for a report from the store."""
    if work is None:
        return
    total = work.reused + work.called + work.shared
    reused = f"{work.reused:,} of {total:,} results were there already; " if work.reused else ""
    yield f"{reused}{_count(work.sent, 'request')} sent."
    if work.workers or work.lost:
        yield f"Called by {_count(work.workers, 'worker')}."
    if work.lost:
        were = "was" if work.lost == 1 else "were"
        yield f"{_count(work.lost, 'worker')} {were} lost ({work.lost_because}); others took over what they could."
    if work.shared:
        yield f"{_count(work.shared, 'result')} added by another process meanwhile."
    if work.edited:
        was, its, it, were = ("was", "its", "it", "was") if work.edited == 1 else ("were", "their", "they", "were")
        yield (
            f"{_count(work.edited, 'sample')} {was} edited in {its} target, group or metadata since {it} {were} asked; "
            "stored answers were scored again."
        )
    if work.rescored:
        yield f"{_count(work.rescored, 'stored output')} scored again without a call."
    if work.replayed:
        yield f"{_count(work.replayed, 'answer')} came from the store."


def note_supplied(run: EvalRun) -> Iterator[str]:
    """Note that the answers of a run were supplied, and which of them or of the samples have no counterpart."""
    supplied = run.spec.get("supplied", {})
    if supplied:
        sources = ", ".join(dict.fromkeys(own["source"] for own in supplied.values()))
        yield (
            f"The answers were supplied ({sources}) and not requested: their latency, tokens and cost are unknown"
            f"{'' if 'run ' not in sources else ' unless that run recorded them'}."
        )
    for label, own in supplied.items():
        if own["surplus"]:
            has, is_left = ("answer has", "is") if own["surplus"] == 1 else ("answers have", "are")
            yield f"{label}: {own['surplus']:,} {has} no sample in the dataset, and {is_left} left out."


def note_budget(use: BudgetUse | None) -> Iterator[str]:
    """Note the use of the budget, and why it stopped the run; nothing without a budget."""
    if use is None:
        return
    if use.text:
        yield f"The run has spent {use.text}."
    if use.uncounted:
        yield f"{_count(use.uncounted, 'earlier request')} with an unknown end counted as the most that one may take."
    if use.why is not None:
        yield use.why


def note_decision(decision: Decision | None) -> Iterator[str]:
    """Note what the stop rule found, and which interval holds after an early stop; nothing without a rule."""
    if decision is None:
        return
    yield decision.describe()
    if decision.is_decided:
        yield "Other intervals and p-values are for a number of samples that was fixed beforehand, which this was not."


def note_stops(stopped: Mapping[str, str], failures: Sequence[str]) -> Iterator[str]:
    """Note variants that are no longer called, with the reason unless a failure note gives it already."""
    for label, reason in stopped.items():
        is_known = any(note.endswith(f"on {label}: {reason}") for note in failures)
        yield f"{label} is no longer called." if is_known else f"{label} is no longer called: {reason}"


def note_failures(results: Sequence[EvalResult]) -> Iterator[str]:
    """Note the results without a score, by status and error code."""
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in (FAILED, SCORER_FAILED, IN_PROGRESS)}
    if counts[FAILED]:
        codes = [result.error_code or "unknown" for result in results if result.status == FAILED]
        listed = ", ".join(f"{code} {codes.count(code)}" for code in sorted(set(codes)))
        yield f"{_count(counts[FAILED], 'sample')} failed ({listed})."
    if counts[SCORER_FAILED]:
        yield f"{_count(counts[SCORER_FAILED], 'answer')} could not be scored; see scorer_errors."
    if counts[IN_PROGRESS]:
        yield f"{_count(counts[IN_PROGRESS], 'sample')} under way in another process."


def note_doubt(calls: int) -> Iterator[str]:
    """Note how many calls began and never ended."""
    if calls:
        yield f"{_count(calls, 'call')} in doubt: started but never finished, possibly billed."


def note_dominant_group(clusters: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Note a group with more than half of the samples: few degrees of freedom are left beside it.

    Args:
        clusters: Kind (`group` or `sample`) and name of the cluster of each sample.
    """
    groups = Counter(name for kind, name in clusters.values() if kind == "group")
    if not groups:
        return
    name, size = groups.most_common(1)[0]
    if size < len(clusters) and size > DOMINANT_SHARE * len(clusters):
        share = f"{size:,} of {len(clusters):,} samples"
        yield f"Group {name!r} has {share}, so it dominates means and widens their intervals."


def note_direction(lower: Sequence[str]) -> Iterator[str]:
    """Note the metrics of which less is better."""
    if lower:
        yield f"Less is better: {', '.join(lower)}."


def note_fallbacks(results: Sequence[EvalResult]) -> Iterator[str]:
    """Note how many samples were answered by a fallback."""
    number = sum(fell_back(result) for result in results)
    if number:
        yield f"{_count(number, 'sample')} answered by a fallback; summary(by='served_route') shows who answered."


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def describe_request_differences(results: Iterable[EvalResult], variants: Sequence[str]) -> tuple[str, ...]:
    """Return a warning when variants were sent different requests for the same sample.

    Only valid outputs count: for the others the last request is unknown.

    Args:
        results: Of all variants, or of the two that are compared.
        variants: Labels in the order in which they are named.
    """
    by_sample: dict[SampleKey, set[RequestShape]] = {}
    by_variant: dict[str, dict[RequestShape, None]] = {label: {} for label in variants}
    for result in results:
        # Early versions stored neither an outcome nor a schema hash.
        if result.output_mode is not None and result.outcome is not None:
            request = (result.output_mode, result.schema_sha256)
            by_sample.setdefault((result.sample_id, result.epoch), set()).add(request)
            by_variant.setdefault(result.route, {})[request] = None
    differing = sum(len(shapes) > 1 for shapes in by_sample.values())
    if not differing:
        return ()
    requests = "; ".join(
        f"{label}: {', '.join(map(_describe_request, shapes))}" for label, shapes in by_variant.items() if shapes
    )
    warning = (
        f"The variants were sent different requests on {differing:,} of {len(by_sample):,} samples, so their "
        f"difference is not the models' alone ({requests})."
    )
    return (warning,)


def _describe_request(request: RequestShape) -> str:
    mode, schema = request
    return f"{mode}, {f'schema {schema[:SHOWN_DIGITS]}' if schema else 'no schema sent'}"


def note_digests(seen: Iterable[DigestSeen]) -> Iterator[str]:
    """Note each route behind which the model changed during the run.

    Args:
        seen: The digests by first appearance within a route.
    """
    by_route: dict[Route, list[DigestSeen]] = {}
    for each in seen:
        by_route.setdefault(each.route, []).append(each)
    for route, digests in by_route.items():
        if len(digests) > 1:
            models = ", then ".join(
                f"{each.digest[:SHOWN_CHARS]} ({each.requests:,} {'request' if each.requests == 1 else 'requests'})"
                for each in digests
            )
            yield f"The model behind {route} changed during the run: {models}. Its results are not of one model."


def note_hosts(uses: Iterable[HostUse]) -> Iterator[str]:
    """Note that several machines sent the requests, and the latency that each of them measured; nothing for one."""
    by_host: dict[str, list[HostUse]] = {}
    for use in uses:
        by_host.setdefault(use.host or "unknown", []).append(use)
    if len(by_host) < 2:
        return
    parts = []
    for host, own in by_host.items():
        measured = [(use.route, use.mean_latency_ms) for use in own if use.mean_latency_ms is not None]
        times = ", ".join(f"{route} {mean_ms:,.0f} ms" for route, mean_ms in measured)
        parts.append(f"{host} ({sum(use.requests for use in own):,} requests; {times or 'no answer'})")
    more = f" and {len(parts) - SHOWN_HOSTS} more" if len(parts) > SHOWN_HOSTS else ""
    shown = ", ".join(parts[:SHOWN_HOSTS]) + more
    yield f"Answered by {len(by_host)} hosts: {shown}. Compare latencies within a host."


def note_different_hosts(digests: Iterable[HostDigest]) -> Iterator[str]:
    """Note each route that is not the same model on all machines."""
    for route, hosts in find_different_digests(digests).items():
        named = [f"{digest[:SHOWN_CHARS]} on {', '.join(names[:SHOWN_HOSTS])}" for digest, names in hosts.items()]
        models = "; ".join(named)
        yield f"{route} is not the same model on all machines: {models}. Its results are not of one model."
