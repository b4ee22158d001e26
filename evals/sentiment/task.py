"""Sentiment of a short review, positive or negative.

The examples of the prompt show a base model, which follows patterns and not instructions, what to write. The prompt
`zero-shot` has none. Compare the two on one model:

    llmkit eval run evals/sentiment/task.py --routes local/gemma-3-270m,local/gemma-3-270m@zero-shot --name shots
"""

from typing import Literal

from pydantic import BaseModel

from llmkit.evals import Task, field_match


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


FEW_SHOT = """\
Text: The waiter was charming and the dessert was superb.
JSON: {{"label": "positive"}}

Text: I waited an hour and the food was disgusting.
JSON: {{"label": "negative"}}

Text: The screen is scratched and the seller refuses to pay.
JSON: {{"label": "negative"}}

Text: We had a lovely holiday and will surely come back.
JSON: {{"label": "positive"}}

Text: The chair wobbles and looks cheap.
JSON: {{"label": "negative"}}

Text: An inspiring talk, I learned so much.
JSON: {{"label": "positive"}}

Text: {input}
JSON:"""

ZERO_SHOT = """\
Say whether the sentiment of the text is positive or negative, as a JSON object with the field "label".

Text: {input}
JSON:"""

task = Task(
    name="sentiment",
    dataset="sentiment.jsonl",
    prompt=FEW_SHOT,
    output_type=Sentiment,
    scorers=[field_match("label")],
    prompts={"zero-shot": ZERO_SHOT},
    parameters={"temperature": 0, "max_output_tokens": 64},
    description="Short reviews: positive or negative.",
)
