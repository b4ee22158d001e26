"""Which tool does a request need, if any? The decision that stands at the beginning of every agent.

llmkit eval run evals/tools/task.py --routes ollama/llama3.2,gemini/gemini-2.5-flash --name tools
"""

from typing import Literal

from pydantic import BaseModel

from llmkit.evals import Task, field_match
from llmkit.evals.dataset.dataset import Sample


class Choice(BaseModel):
    tool: Literal["none", "calculator", "calendar", "weather", "search"]


SYSTEM = """\
You decide which tool an assistant needs for a request. The tools:
calculator: exact arithmetic with large or many-digit numbers
calendar: the user's own appointments, to read or to change
weather: weather now and in the next days, anywhere
search: facts that change or that happened lately, from the web
none: everything that a language model can do by itself
Answer with a JSON object with the field "tool"."""


def needs_no_tool_when_none_is_needed(output: Choice, sample: Sample) -> bool:
    """Whether the model sees that there is something to call at all, whatever it would call."""
    target = sample.target["tool"] if isinstance(sample.target, dict) else sample.target
    return (output.tool == "none") == (target == "none")


task = Task(
    name="tools",
    dataset="tools.jsonl",
    prompt="Request: {input}\nJSON:",
    system=SYSTEM,
    output_type=Choice,
    scorers=[field_match("tool"), needs_no_tool_when_none_is_needed],
    parameters={"temperature": 0, "max_output_tokens": 64},
    description="Requests to an assistant: which of four tools is needed, or none?",
)
