"""`%%llm`: a cell that is a prompt. `%load_ext llmkit` brings it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest
from llmkit.notebook.pandas_accessor import latest_session
from llmkit.types import LLMResponse

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension"]

USAGE = "%%llm [--route provider/model] [--system TEXT] [--into NAME]"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%%llm` with a shell.

    The cell is sent as it stands to the session that was made last. `--route` pins a model, `--system` puts a text in
    front, `--into` also keeps the answer in a variable.
    """

    def llm(line: str, cell: str) -> LLMResponse:
        options = _options(line)
        into = options.pop("into", None)
        if into is not None and (not into.isidentifier() or iskeyword(into)):
            raise LLMBadRequest(f"--into names a variable; {into!r} cannot be one")
        answer: LLMResponse = latest_session().chat(cell.strip(), **options)
        if into is not None:
            shell.user_ns[into] = answer
        return answer

    llm.__doc__ = f"Ask a model what stands in the cell: `{USAGE}`."
    register: Callable[..., None] = shell.register_magic_function  # its annotations describe its decorator
    register(llm, magic_kind="cell", magic_name="llm")


def _options(line: str) -> dict[str, Any]:
    """What stands behind `%%llm`.

    Raises:
        LLMBadRequest: It is not as `USAGE` says.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise LLMBadRequest(f"{error} in the first line; write {USAGE}") from None
    names = [word.removeprefix("--") for word in words[::2]]
    known = set(names) <= {"route", "system", "into"} and all(word.startswith("--") for word in words[::2])
    if not known or len(words) % 2:
        raise LLMBadRequest(f"Write {USAGE}")
    return dict(zip(names, words[1::2], strict=True))
