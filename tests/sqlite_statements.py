"""The journal's statements for SQLite, compiled ahead: `python -m tests.sqlite_statements` writes the file anew."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.dialects import sqlite

import llmkit.persistence
from llmkit.persistence.prepared import SQLITE_STATEMENTS_FILE, as_json
from llmkit.persistence.statements import compile_all

FILE = Path(llmkit.persistence.__file__).with_name(SQLITE_STATEMENTS_FILE)


def current() -> str:
    """What the file has to hold."""
    return as_json(compile_all(sqlite.dialect()))


if __name__ == "__main__":
    FILE.write_text(current(), "utf-8")
