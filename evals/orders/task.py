"""Orders: customer, delivery and items, with nested fields, a list of lines, and a date that may be missing.

llmkit eval run evals/orders/task.py --routes ollama/llama3.2,gemini/gemini-2.5-flash --name orders
"""

from datetime import date

from pydantic import BaseModel, Field

from llmkit.evals import Task, exact_match, field_match, set_f1


class Line(BaseModel):
    item: str = Field(description="In the singular, lower case, without a number.")
    quantity: int


class Delivery(BaseModel):
    city: str
    day: date | None = Field(description="The day that is asked for; null when there is none.")


class Order(BaseModel):
    customer: str = Field(description="First and last name.")
    delivery: Delivery
    lines: list[Line] = Field(description="What is ordered in the end, in the order of the text.")


PROMPT = """\
Read the order and write it as a JSON object.

Order: Rosa Klein of Trier needs a saw and four hinges by 12 March 2027.
JSON: {{"customer": "Rosa Klein", "delivery": {{"city": "Trier", "day": "2027-03-12"}}, "lines": [{{"item": "saw", "quantity": 1}}, {{"item": "hinge", "quantity": 4}}]}}

Order: Send 2 stoves to Per Dahl, who lives in Bodø.
JSON: {{"customer": "Per Dahl", "delivery": {{"city": "Bodø", "day": null}}, "lines": [{{"item": "stove", "quantity": 2}}]}}

Order: {input}
JSON:"""  # noqa: E501 - as the model should write it

task = Task(
    name="orders",
    dataset="orders.jsonl",
    prompt=PROMPT,
    output_type=Order,
    scorers=[
        exact_match(normalise=True),
        field_match("customer", "delivery.city", "delivery.day", "lines", normalise=True),
        set_f1("lines", name="lines_f1"),
    ],
    parameters={"temperature": 0, "max_output_tokens": 256},
    description="Short orders: customer, delivery, and a list of items.",
)
