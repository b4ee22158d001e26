"""The store's contents as DataFrames, with fixed columns and dtypes.

`Session.runs`, `attempts` and `usage` return these frames; the functions here read them from any connection to a
store. Names are loaded when they are first used: this package is cheap to import, SQLAlchemy and pandas are not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.dataframes.store import (
        ATTEMPT_COLUMNS,
        EVAL_RESULT_COLUMNS,
        EVAL_RUN_COLUMNS,
        RUN_COLUMNS,
        USAGE_COLUMNS,
        read_attempts,
        read_eval_results,
        read_eval_runs,
        read_runs,
    )
    from llmkit.dataframes.usage import UsageFrame, read_usage

__all__ = [
    "ATTEMPT_COLUMNS",
    "EVAL_RESULT_COLUMNS",
    "EVAL_RUN_COLUMNS",
    "RUN_COLUMNS",
    "USAGE_COLUMNS",
    "UsageFrame",
    "read_attempts",
    "read_eval_results",
    "read_eval_runs",
    "read_runs",
    "read_usage",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "usage" if name in {"UsageFrame", "read_usage"} else "store"
        return getattr(import_module(f"llmkit.dataframes.{module}"), name)
    raise AttributeError(f"module 'llmkit.dataframes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
