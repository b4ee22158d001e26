"""One question over a whole column: bounded, deduplicated, resumable, every failure a row."""

from llmkit.batch.progress_bar import Meter, bar
from llmkit.mapping.columns import MAP_COLUMNS
from llmkit.mapping.job import MapJob
from llmkit.mapping.plan import plan_map

__all__ = ["MAP_COLUMNS", "MapJob", "Meter", "bar", "plan_map"]
