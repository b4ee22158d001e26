"""Reads through a journal that is closed meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from llmkit.persistence.journal import Journal

if TYPE_CHECKING:
    from sqlalchemy import Connection


def test_a_read_that_outlives_the_journal_leaves_no_connection_open(database_url: str) -> None:
    """A cancelled caller does not stop the thread that reads for it, so that closing may come before its end."""
    journal = Journal(database_url)
    began, go_on = threading.Event(), threading.Event()

    def work(connection: Connection) -> Any:
        began.set()
        go_on.wait()
        connection.exec_driver_sql("SELECT 1")
        return connection.connection.dbapi_connection

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(journal.read_here, work)
        began.wait()
        journal.close()
        go_on.set()
        lent = reading.result()
    assert is_closed(lent)


def is_closed(connection: Any) -> bool:
    try:
        connection.cursor()
    except Exception as error:  # noqa: BLE001 - each driver has its own
        return "closed" in str(error)
    return False
