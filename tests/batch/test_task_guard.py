"""Tasks of a session's event loop that the user's code cannot cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llmkit.batch.task_guard import cancel_task, guard_loop, guard_tasks, start_session_task, start_user_task


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        guard_loop(loop)
        try:
            runner.run(work)
        finally:  # `Runner` closes a loop by its own methods
            vars(loop).pop("shutdown_asyncgens")
            vars(loop).pop("shutdown_default_executor")


def test_code_of_the_users_cancels_only_what_it_started() -> None:
    async def work() -> None:
        session = asyncio.create_task(asyncio.sleep(60))
        other = start_user_task(asyncio.sleep(60))
        with guard_tasks():
            own = asyncio.create_task(asyncio.sleep(60))
            nested = start_user_task(asyncio.sleep(60))
            assert [task.cancel() for task in (session, other, own, nested)] == [False, False, True, True]
        assert session.cancel()
        assert other.cancel()

    run(work())


def test_a_task_that_is_shared_is_nobodys_own() -> None:
    async def work() -> None:
        with guard_tasks():
            shared = start_session_task(asyncio.sleep(60))
            assert not shared.cancel()
            # A finalizer may run in the middle of any code.
            cancel_task(shared)
        with pytest.raises(asyncio.CancelledError):
            await shared

    run(work())
