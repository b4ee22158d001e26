"""One transaction of a caller that wants its own, with the repository bound to it."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from llmkit.errors import LLMStoreError
from llmkit.persistence.addresses import label_of, path_of
from llmkit.persistence.database_errors import store_error
from llmkit.persistence.engines import IMMEDIATE_OPTIONS
from llmkit.persistence.repo import SqlLLMRunRepo

__all__ = ["SqlUnitOfWork"]

NOT_ENTERED: Final = "A unit of work is used inside its `async with` block."


class SqlUnitOfWork:
    """`UnitOfWork` on a database session that lives as long as the block.

    While the block holds a write on SQLite no other process can write: keep it short, and do not put a call to a model
    inside. What runs calls by the thousand uses the journal.

    Args:
        engine: From `make_async_engine`; one unit of work uses one of its connections.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._db: AsyncSession | None = None

    @property
    def db(self) -> AsyncSession:
        """The database session, for other writes of the same transaction."""
        if self._db is None:
            raise LLMStoreError(NOT_ENTERED)
        return self._db

    @property
    def runs(self) -> SqlLLMRunRepo:
        """Repository bound to this transaction."""
        return SqlLLMRunRepo(self.db)

    async def __aenter__(self) -> Self:
        db = AsyncSession(self._engine, expire_on_commit=False)
        try:
            await db.connection(execution_options=IMMEDIATE_OPTIONS)
        except (SQLAlchemyError, OSError) as error:
            await db.close()
            raise self._translate_error(error) from None
        self._db = db
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        db, self._db = self._db, None
        if db is not None:
            await db.close()

    async def commit(self) -> None:
        """Make everything in the block durable. Once: the block ends with it.

        Raises:
            LLMStoreError: The database failed; nothing in the block is stored.
        """
        try:
            await self.db.commit()
        except (SQLAlchemyError, OSError) as error:
            raise self._translate_error(error) from None

    def _translate_error(self, error: Exception) -> LLMStoreError:
        return store_error(error, label_of(self._engine.url), path_of(self._engine.url))
