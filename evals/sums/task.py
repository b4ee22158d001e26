"""Word problems with one number as the answer. The prompt `steps` lets the model think in words first.

llmkit eval run evals/sums/task.py --routes ollama/llama3.2,ollama/llama3.2@steps --name sums
"""

from pydantic import BaseModel, Field

from llmkit.evals import Task, numeric_tolerance


class Answer(BaseModel):
    working: str = Field(default="", description="How the number comes about.")
    answer: float = Field(description="The number alone, without its unit.")


DIRECT = """\
Solve the problem. Answer with a JSON object with the field "answer", a number without a unit.

Problem: {input}
JSON:"""

STEPS = """\
Solve the problem step by step. Answer with a JSON object: first the field "working" with the steps in a few words, then
the field "answer", a number without a unit.

Problem: {input}
JSON:"""

task = Task(
    name="sums",
    dataset="sums.jsonl",
    prompt=DIRECT,
    output_type=Answer,
    scorers=[numeric_tolerance("answer", absolute=0.005)],
    prompts={"steps": STEPS},
    parameters={"temperature": 0, "max_output_tokens": 400},
    description="Word problems with one number as the answer.",
)
