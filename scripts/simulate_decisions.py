"""Simulate what `EvalReport.what_if` and `ranks` claim where nothing is to be gained.

    python scripts/simulate_decisions.py [WORLDS]

Two variants that are equally good on every sample, and a signal and a metadata key that say nothing. No policy can be
better than the reference, so the 95 % interval of the cross-fitted difference should contain 0 in 93 to 97 % of the
worlds. An interval around the figure with the choices made on the same samples does not.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from uuid import UUID

import numpy as np

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals import Below, Cascade, EvalReport, Sample, Split

RUN_ID = UUID(int=1)
MADE_AT_UTC = datetime(2026, 1, 1, tzinfo=UTC)
SAMPLES = 200
LANGUAGES = 8
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


def main(worlds: int) -> None:
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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
