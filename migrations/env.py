"""Runs revisions, for `llmkit db upgrade` (which passes its connection) and for the `alembic` command."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.migrate import migration_connection
from llmkit.persistence.models import METADATA
from llmkit.settings import load_settings


def configured_address() -> DatabaseAddress:
    return context.config.attributes.get("address") or DatabaseAddress.parse(load_settings().database_url)


def run(connection: Connection) -> None:
    # Batches: SQLite changes most of a table by building it anew.
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def run_offline() -> None:
    address = configured_address()
    context.configure(
        dialect_name=address.url.get_backend_name(),
        target_metadata=METADATA,
        literal_binds=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    with migration_connection(configured_address()) as connection:
        run(connection)


if context.is_offline_mode():
    run_offline()
else:
    run_online()
