"""Simulate what `EvalReport.what_if` and the stop rule `Decided` claim.

    python scripts/simulate_decisions.py [WORLDS] [RUNS]

First table: two variants that are equally good on every sample, and a signal and a metadata key that say nothing. No
policy can be better than the reference, so the 95 % interval of the cross-fitted difference should contain 0 in 93 to
97 % of the worlds. An interval around the figure with the choices made on the same samples does not.

Second table: runs of 3,000 pairs with a stop rule at alpha 5 %; 30 % of the pairs disagree where the difference allows.
A decision where there is no difference, or for the wrong side, is a false one. The fixed plans are the pairs that a
paired test needs for that difference, looked at once.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals import Below, Cascade, Decided, EvalReport, Sample, Split
from llmkit.evals.decide.stopping import DecisionWatch
from llmkit.evals.statistics import count_pairs_needed

RUN_ID = UUID(int=1)
MADE_AT_UTC = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLES = 200
LANGUAGES = 8
PAIRS = 3_000
POLICIES = {
    "threshold": Cascade("a", "b", when=Below("confidence")),
    "split": Split("metadata.language", ["a", "b"]),
}


def make_world(seed: int) -> EvalReport:
    """Return a report of two equally good variants."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(4, 2, SAMPLES)
    samples = {
        f"s{i}": Sample("text", "label", id=f"s{i}", metadata={"language": int(rng.integers(LANGUAGES))})
        for i in range(SAMPLES)
    }
    results = tuple(
        EvalResult(
            eval_run_id=RUN_ID,
            route=variant,
            sample_id=f"s{i}",
            epoch=0,
            status="SUCCEEDED",
            finished_at_utc=MADE_AT_UTC,
            pipeline_run_id=f"{variant}:{i}:0",
            output_json=json.dumps({"confidence": float(rng.random())}),
            scores={"match": float(rng.random() < chances[i])},
            outcome="first_try",
        )
        for variant in "ab"
        for i in range(SAMPLES)
    )
    run = EvalRun(RUN_ID, "w", "world", "task", "t", "d", MADE_AT_UTC, {"scorers": ["match"]})
    return EvalReport(run, results, dataset=samples)


def print_coverage(worlds: int) -> None:
    """Print how often each interval contains 0."""
    honest, naive = dict.fromkeys(POLICIES, 0), dict.fromkeys(POLICIES, 0)
    for seed in range(worlds):
        frame = make_world(seed).what_if(POLICIES, reference="a").set_index("policy")
        for name in POLICIES:
            row = frame.loc[name]
            honest[name] += row["difference_low"] <= 0 <= row["difference_high"]
            reach = (row["difference_high"] - row["difference_low"]) / 2
            naive[name] += abs(row["difference_in_sample"]) <= reach
    print(f"{worlds} worlds of {SAMPLES} samples: share of 95 % intervals that contain the true gain, 0")
    for name in POLICIES:
        print(f"  {name:<10} cross-fitted {honest[name] / worlds:.3f}   on the same samples {naive[name] / worlds:.3f}")


def run_until_decided(difference: float, seed: int) -> tuple[int, str]:
    """Return the number of pairs until the decision, at most 3,000, and the verdict."""
    rng = np.random.default_rng(seed)
    disagree = max(0.3, difference)
    chances = [(disagree - difference) / 2, 1 - disagree, (disagree + difference) / 2]
    outcomes = rng.choice([-1, 0, 1], size=PAIRS, p=chances).tolist()
    watch = DecisionWatch(Decided("match"), "a", "b", {str(i): [str(i)] for i in range(PAIRS)})
    for i, outcome in enumerate(outcomes):
        watch.note("a", str(i), float(outcome > 0))
        watch.note("b", str(i), float(outcome < 0))
        if watch.is_decided:
            break
    return i + 1, watch.conclude().verdict


def print_stops(runs: int) -> None:
    """Print false decisions and the mean number of pairs, beside two fixed plans."""
    print(f"{runs} runs of {PAIRS:,} pairs with Decided(alpha=0.05)")
    for difference in (0.0, 0.02, 0.05, 0.1, 0.2):
        found = [run_until_decided(difference, seed) for seed in range(runs)]
        false = sum(verdict == "worse" or (verdict == "better" and not difference) for _pairs, verdict in found)
        decided = sum(verdict != "not decided" for _pairs, verdict in found)
        line = f"  difference {difference:.2f}: false {false / runs:.4f}, decided {decided / runs:.3f}, "
        line += f"pairs {np.mean([pairs for pairs, _verdict in found]):7.1f}"
        if difference:
            spread = float(np.sqrt(max(0.3, difference) - difference**2))
            plans = {power: count_pairs_needed(difference, spread, power=power) for power in (0.8, 0.95)}
            line += "".join(f", plan for {power:.0%} power {count:,}" for power, count in plans.items())
        print(line, flush=True)


if __name__ == "__main__":
    print_coverage(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
    print_stops(int(sys.argv[2]) if len(sys.argv) > 2 else 2_000)
