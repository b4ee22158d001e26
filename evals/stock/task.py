"""Questions to a shop, answered by an agent that looks up prices, stock and delivery times with tools.

llmkit eval run evals/stock/task.py --routes ollama/llama3.2,gemini/gemini-2.5-flash --name stock
"""

from pydantic import BaseModel

from llmkit.evals import AsyncBoundModel, Sample, Task, numeric_tolerance

# Price and pieces of each item.
ITEMS = {
    "kettle": (29, 14),
    "lamp": (18, 3),
    "rug": (75, 6),
    "chair": (42, 20),
    "mirror": (55, 1),
    "clock": (16, 9),
    "vase": (12, 0),
    "basket": (8, 31),
    "shelf": (64, 5),
    "stool": (27, 11),
}
DAYS = {"Bremen": 2, "Oslo": 5, "Leeds": 4, "Turin": 3, "Gdansk": 4, "Lyon": 3, "Porto": 6, "Vienna": 2}

INSTRUCTIONS = """\
You answer questions to a shop with one whole number. Look up every price, every number of pieces and every delivery
time with the tools; do not guess one. Then compute the answer."""


class Answer(BaseModel):
    number: int


def look_up_item(name: str) -> str:
    """Return price and pieces in stock of an item.

    Args:
        name: The item in the singular and in lower case, such as kettle.
    """
    if name not in ITEMS:
        return f"There is no item {name!r}; there are {', '.join(ITEMS)}."
    price, pieces = ITEMS[name]
    return f"One {name} costs {price}. There are {pieces} pieces."


def look_up_delivery(city: str) -> str:
    """Return the delivery time to a city in days.

    Args:
        city: The name of the city.
    """
    return f"{DAYS[city]} days" if city in DAYS else f"No delivery to {city!r}; the cities are {', '.join(DAYS)}."


async def answer_question(sample: Sample, model: AsyncBoundModel) -> Answer:
    """Let an agent look up what it needs."""
    agent = model.agent(Answer, tools=[look_up_item, look_up_delivery], instructions=INSTRUCTIONS)
    result = await agent.run(str(sample.input))
    answer: Answer = result.output
    return answer


task = Task(
    name="stock",
    dataset="stock.jsonl",
    solve=answer_question,
    # The dictionaries above are no part of what is compared, so this changes with them.
    version="1",
    scorers=[numeric_tolerance("number", absolute=0.5)],
    parameters={"temperature": 0, "max_output_tokens": 128},
    description="Questions to a shop, answered by an agent with two tools.",
)
