"""The files of a first study, written by `llmkit init`: a table of samples, a task, and a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

__all__ = ["FIRST_TEXT", "Sentiment", "build_study", "list_examples"]


class Sentiment(BaseModel):
    """The answer of the study."""

    label: Literal["positive", "negative"]


# A sentence that is in neither the samples nor the examples.
FIRST_TEXT: Final = "The room was clean and the staff could not have been kinder."

_EXAMPLES: Final = (
    ("The waiter was charming and the dessert was superb.", "positive"),
    ("I waited an hour and the food was disgusting.", "negative"),
    ("The screen is scratched and the seller refuses to pay.", "negative"),
    ("We had a lovely holiday and will surely come back.", "positive"),
    ("The chair wobbles and looks cheap.", "negative"),
    ("An inspiring talk, I learned so much.", "positive"),
)
_SAMPLES: Final = (
    ("The bread was fresh and the coffee excellent.", "positive"),
    ("The battery died after one day.", "negative"),
    ("A wonderful concert, we stayed until the end.", "positive"),
    ("The parcel arrived broken and no one answered.", "negative"),
    ("Our guide was patient and very funny.", "positive"),
    ("The website crashed twice while I paid.", "negative"),
    ("This jacket is warm, light and well made.", "positive"),
    ("Rude staff and dirty tables.", "negative"),
    ("The best pizza that I have had in years.", "positive"),
    ("The instructions are impossible to follow.", "negative"),
    ("Quick repair at a fair price.", "positive"),
    ("The train was late again and overcrowded.", "negative"),
)

_TASK: Final = '''\
"""Is a short review positive or negative?

    llmkit eval run {task_file} --routes {route} --name first

Change the samples in {data_file}, the prompt, or the output type below, and run it again under another name. Name
several routes, separated by commas, to compare models.
"""

from typing import Literal

from pydantic import BaseModel

from llmkit.evals import Task, field_match


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


# The examples show a base model, which follows patterns and not instructions, what to write. {{input}} is the sample.
PROMPT = """\\
Is the sentiment of each text positive or negative?

{shots}Text: {{input}}
JSON:"""

task = Task(
    name="sentiment",
    dataset="{data_file}",
    prompt=PROMPT,
    output_type=Sentiment,
    scorers=[field_match("label")],
    parameters={{"temperature": 0, "max_output_tokens": 64}},
)
'''

# Kind and text of each cell of the notebook.
_CELLS: Final = (
    (
        "markdown",
        "# A first study\n\nEvery call is recorded in `llmkit.db`, and running a cell again sends nothing twice.",
    ),
    ("code", "import llmkit\nimport pandas as pd\nfrom {module} import Sentiment, task"),
    ("code", "ROUTE = {route!r}\ns = llmkit.Session()"),
    ("markdown", "## One value\n\nThe examples show a small model what an answer looks like."),
    ("code", "examples = [\n{examples}]\ns.extract(Sentiment, {first_text!r}, examples=examples, route=ROUTE)"),
    ("markdown", "## A column\n\nA failure is a row with its reason, never a lost table."),
    (
        "code",
        'reviews = pd.read_csv("{data_file}")\ns.map(Sentiment, reviews["input"], examples=examples, route=ROUTE)',
    ),
    ("markdown", "## How good is it?\n\nThe task compares each answer with its target. Add routes to compare models."),
    ("code", 'report = s.evaluate(task, [ROUTE], name="first")\nreport'),
    ("code", "report.samples()"),
    ("markdown", "## What it took"),
    ("code", "s.usage()"),
)


def list_examples() -> list[tuple[str, Sentiment]]:
    """Return the examples that show a model what an answer looks like."""
    return [(text, Sentiment.model_validate({"label": label})) for text, label in _EXAMPLES]


def build_study(route: str, stem: str = "sentiment") -> Mapping[str, str]:
    """Return the texts of the files by name.

    Args:
        route: Used in the notebook and in the hints.
        stem: Beginning of the file names.
    """
    names = {"task_file": f"{stem}.py", "data_file": f"{stem}.csv", "module": stem}
    # Doubled, because a prompt is a template itself.
    shots = "".join(f'Text: {text}\nJSON: {{{{"label": "{label}"}}}}\n\n' for text, label in _EXAMPLES)
    examples = "".join(f'    ("{text}", Sentiment(label="{label}")),\n' for text, label in _EXAMPLES)
    values = {**names, "route": route, "first_text": FIRST_TEXT, "shots": shots, "examples": examples}
    rows = "".join(f'{number},"{text}",{label}\n' for number, (text, label) in enumerate(_SAMPLES, start=1))
    return {
        names["data_file"]: f"id,input,target.label\n{rows}",
        names["task_file"]: _TASK.format(**values),
        f"{stem}.ipynb": _build_notebook(values),
    }


def _build_notebook(values: Mapping[str, str]) -> str:
    cells: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(_CELLS):
        source = text.format(**values) if kind == "code" else text
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
