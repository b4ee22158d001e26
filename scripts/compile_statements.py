"""Compile the SQLite statements and schema of the store: `make statements`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy.dialects import sqlite

import llmkit.persistence
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.compiled_statements import SQLITE_STATEMENTS_FILE, as_json
from llmkit.persistence.migrate import SQLITE_SCHEMA_FILE, VERSION_TABLE, _migrate, current_state
from llmkit.persistence.statements import compile_all

FOLDER = Path(llmkit.persistence.__file__).parent


def statements() -> str:
    """Compile the journal's statements from the tables."""
    return as_json(compile_all(sqlite.dialect()))


def schema() -> str:
    """Return the schema that the migrations create in a new file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new.db"
        create_database_file(path)
        _migrate(DatabaseAddress.of_file(path), "head")
        revision = current_state(f"sqlite:///{path}").revision
        with closing(sqlite3.connect(path)) as connection:
            made = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    stamp = f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('{revision}')"
    return json.dumps({"revision": revision, "statements": [*(sql for (sql,) in made), stamp]}, indent=1) + "\n"


FILES = {SQLITE_STATEMENTS_FILE: statements, SQLITE_SCHEMA_FILE: schema}

if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_text(make(), "utf-8")
