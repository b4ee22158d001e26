"""Simulate what `EvalReport.what_if` and the stop rule `Decided` claim.

    python scripts/simulate_decisions.py [WORLDS] [RUNS] [CHECKS]

First table: two variants that are equally good on every sample, and a signal and a metadata key that say nothing. No
policy can be better than the reference, so the 95 % interval of the cross-fitted difference should contain 0 in 93 to
97 % of the worlds. An interval around the figure with the choices made on the same samples does not.

Second table: runs of 3,000 pairs with a stop rule at alpha 5 %; 30 % of the pairs disagree where the difference allows.
A decision where there is no difference, or for the wrong side, is a false one. The fixed plans are the pairs that a
paired test needs for that difference, looked at once.

Third table: a policy runs again on the same samples, and its score is compared with the forecast. Samples differ in how
often they are answered rightly. Share of runs whose outcome lies in the interval of the forecast, and whose paired
interval of the difference contains 0.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals import Below, Cascade, Decided, EvalReport, Mix, Policy, Sample, Split
from llmkit.evals.statistics import count_pairs_needed
from llmkit.evals.statistics.sequences import find_decision

RUN_ID = UUID(int=1)
MADE_AT_UTC = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLES = 200
LANGUAGES = 8
PAIRS = 3_000
POLICIES = {
    "threshold": Cascade("a", "b", when=Below("confidence")),
    "split": Split("metadata.language", ["a", "b"]),
}


def make_world(seed: int, shape: tuple[float, float] = (4, 2)) -> EvalReport:
    """Return a report of two equally good variants."""
    rng = np.random.default_rng(seed)
    chances = rng.beta(*shape, SAMPLES)
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
    outcomes = rng.choice([-1.0, 0.0, 1.0], size=PAIRS, p=chances)
    found = find_decision(outcomes, Decided("match").tested_mean, alpha=0.05)
    return (PAIRS, "not decided") if found is None else (found[0], "better" if found[1] else "worse")


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


def print_checks(runs: int) -> None:
    """Print how often the interval of a forecast contains the outcome of another run on the same samples."""
    print(f"{runs} runs on the same {SAMPLES} samples: share of outcomes that the forecast contains")
    policies: dict[str, Policy] = {
        "cascade": Cascade("a", "b", when=Below("confidence", 0.5)),
        "mix": Mix("a", "b", share=0.5),
    }
    worlds = {"alike": (400.0, 100.0), "unlike": (2.0, 0.5), "certain": (0.02, 0.005)}
    for world, shape in worlds.items():
        contained, paired = dict.fromkeys(policies, 0), dict.fromkeys(policies, 0)
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            report = make_world(seed, shape=shape)
            chances = np.random.default_rng(seed).beta(*shape, SAMPLES)
            for name, policy in policies.items():
                again = {f"s{i}": float(rng.random() < chances[i]) for i in range(SAMPLES)}
                ran = [
                    replace(result, route=f"policy:{name}", scores={"match": again[result.sample_id]})
                    for result in report.of("a")
                ]
                frame = report.check_forecast({name: policy}, replace(report, results=tuple(ran)))
                row = frame.iloc[0]
                contained[name] += bool(row["contained"])
                paired[name] += row["difference_low"] <= 0 <= row["difference_high"]
        for name in policies:
            shares = f"forecast {contained[name] / runs:.3f}   paired {paired[name] / runs:.3f}"
            print(f"  samples {world:<8} {name:<8} {shares}", flush=True)


if __name__ == "__main__":
    print_coverage(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
    print_stops(int(sys.argv[2]) if len(sys.argv) > 2 else 2_000)
    print_checks(int(sys.argv[3]) if len(sys.argv) > 3 else 300)
