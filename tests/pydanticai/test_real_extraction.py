"""Few-shot extraction from real reviews, constrained to the schema, on the local model and on a real Ollama.

Both run the same 270-million-parameter base model on reviews of `evals/sentiment`, with six examples, at temperature 0.
Exact scores as measured are in each test's docstring; the tests print theirs (`pytest -s`) and fail only well below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from llmkit import LLMInvalidOutput, Session
from llmkit.evals import load_tasks
from tests.support.ollama_server import RealOllama

SAMPLES = 30
TASK = Path(__file__).parents[2] / "evals" / "sentiment" / "task.py"


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


EXAMPLES = [
    ("The waiter was charming and the dessert was superb.", Sentiment(label="positive")),
    ("I waited an hour and the food was disgusting.", Sentiment(label="negative")),
    ("The screen is scratched and the seller refuses to pay.", Sentiment(label="negative")),
    ("We had a lovely holiday and will surely come back.", Sentiment(label="positive")),
    ("The chair wobbles and looks cheap.", Sentiment(label="negative")),
    ("An inspiring talk, I learned so much.", Sentiment(label="positive")),
]


@pytest.fixture
def reviews() -> list[tuple[str, str]]:
    (task,) = load_tasks(TASK)
    return [(sample.input, sample.target["label"]) for sample in task.load()][:SAMPLES]


def _score(session: Session, route: str, reviews: list[tuple[str, str]]) -> tuple[int, int]:
    """How many labels are right, and how many answers fitted without being repaired or asked for again."""
    right = 0
    for review, label in reviews:
        try:
            found = session.extract(
                Sentiment, review, examples=EXAMPLES, route=route, temperature=0, max_output_tokens=48
            )
        except LLMInvalidOutput:
            continue
        right += found.label == label
    runs = session.runs()
    asked_again = int(runs["metadata_json"].str.contains("asked_again_because").sum())
    assert (runs["status"] == "SUCCEEDED").all()
    assert set(session.attempts()["schema_sha256"].notna()) == {True}
    return right, len(reviews) - asked_again


@pytest.fixture
def on_local() -> Iterator[Session]:
    with Session("real", max_retries=0) as session:
        yield session


@pytest.mark.local
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_few_shot_extraction_on_the_embedded_model(on_local: Session, reviews: list[tuple[str, str]]) -> None:
    """Measured: 30 of 30 right, all at the first try (of all 50 reviews: 50)."""
    right, fitted = _score(on_local, "local/gemma-3-270m", reviews)
    print(f"\nembedded gemma-3-270m: {right} of {len(reviews)} right, {fitted} fitted at the first try")
    assert len(reviews) == SAMPLES
    assert right >= 0.8 * len(reviews)
    assert fitted == len(reviews)


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_few_shot_extraction_on_a_real_ollama(real_ollama: RealOllama, reviews: list[tuple[str, str]]) -> None:
    """Measured: 30 of 30 right, all at the first try (of all 50 reviews: 50)."""
    with Session("real", ollama_api_base=real_ollama.url, max_retries=0) as session:
        right, fitted = _score(session, f"ollama/{real_ollama.model}", reviews)
    print(f"\nOllama {real_ollama.model}: {right} of {len(reviews)} right, {fitted} fitted at the first try")
    assert len(reviews) == SAMPLES
    assert right >= 0.8 * len(reviews)
    assert fitted == len(reviews)
