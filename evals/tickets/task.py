"""Messages to a shop, read in two steps: first what the message is about in one sentence, then its parts.

llmkit eval run evals/tickets/task.py --routes ollama/llama3.2,gemini/gemini-2.5-flash --name tickets
"""

from typing import Literal

from pydantic import BaseModel, Field

from llmkit.evals import BoundModel, Sample, Task, exact_match, field_match


class Ticket(BaseModel):
    product: str = Field(description="What was ordered, in the words of the message.")
    order: str = Field(description="The number of the order.")
    problem: Literal["broken", "late", "wrong item", "refund"]


# A model that was trained to continue texts needs to see what is wanted.
SUMMARISE = """\
Say in one plain sentence what a message to a shop is about: the product, the order and the problem.

Message: I do love your catalogue. Only, the radio of order 30111 hums so loudly that we cannot hear the news.
Sentence: In order 30111 the radio is broken.

Message: Kind regards from the lake! Where is the tent of order 30112? It was to be here on Monday.
Sentence: In order 30112 the tent is late.

Message: A pillow was all that I wanted, order 30113. Now I have a hammock.
Sentence: In order 30113 another item came in place of the pillow.

Message: The jacket of order 30114 is good, but I do not need it any more and want my money back.
Sentence: In order 30114 the customer wants a refund for the jacket.

Message: {input}
Sentence:"""

EXAMPLES = (
    ("In order 30111 the radio is broken.", Ticket(product="radio", order="30111", problem="broken")),
    ("In order 30112 the tent is late.", Ticket(product="tent", order="30112", problem="late")),
    (
        "In order 30113 another item came in place of the pillow.",
        Ticket(product="pillow", order="30113", problem="wrong item"),
    ),
    (
        "In order 30114 the customer wants a refund for the jacket.",
        Ticket(product="jacket", order="30114", problem="refund"),
    ),
)


def read_ticket(sample: Sample, model: BoundModel) -> Ticket:
    """Summarise the message, and read the parts out of the summary."""
    prompt = SUMMARISE.replace("{input}", str(sample.input))
    summary = model.chat(prompt, stop="\n", max_output_tokens=48, step="summary").text.strip()
    return model.extract(Ticket, summary, examples=EXAMPLES, step="parts")


task = Task(
    name="tickets",
    dataset="tickets.jsonl",
    solve=read_ticket,
    scorers=[exact_match(normalise=True), field_match("product", "order", "problem", normalise=True)],
    parameters={"temperature": 0, "max_output_tokens": 96},
    description="Messages to a shop, read in two steps: a summary, then product, order and problem.",
)
