"""Group commit: one thread owns the write connection, and what callers ask at the same time shares one transaction."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Any, ClassVar, Final, Self

from sqlalchemy import Connection

from llmkit.errors import LLMStoreError
from llmkit.persistence.connection import WriteConnection
from llmkit.persistence.faults import Fault, classify
from llmkit.persistence.statements import Statements

__all__ = ["GroupWriter", "Operation"]
