"""One question over a whole column: bounded, deduplicated, resumable, every failure a row."""

from llmkit.mapping.bar import Meter, bar
from llmkit.mapping.frame import MAP_COLUMNS
from llmkit.mapping.plan import plan_map
from llmkit.mapping.work import Mapping

__all__ = ["MAP_COLUMNS", "Mapping", "Meter", "bar", "plan_map"]
