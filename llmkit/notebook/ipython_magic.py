"""The `%%llm` magic: a cell that is a prompt. `%load_ext llmkit` loads it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest
from llmkit.notebook.pandas_accessor import get_latest_session
from llmkit.types import LLMResponse

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension"]

USAGE = "%%llm [--route provider/model] [--system TEXT] [--into NAME]"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%%llm` with a shell.

    The cell is sent unchanged by the newest session. `--route` pins a model, `--system` sets the system message,
    `--into` also assigns the answer to a variable.
    """

    def llm(line: str, cell: str) -> LLMResponse:
        options = _parse_options(line)
        variable = options.pop("into", None)
        if variable is not None and (not variable.isidentifier() or iskeyword(variable)):
            raise LLMBadRequest(f"--into takes the name of a variable; {variable!r} cannot be one")
        answer = get_latest_session().chat(cell.strip(), **options)
        if variable is not None:
            shell.user_ns[variable] = answer
        return answer

    llm.__doc__ = f"Send the cell to a model: `{USAGE}`."
    register: Callable[..., None] = shell.register_magic_function  # its annotations are those of its decorator form
    register(llm, magic_kind="cell", magic_name="llm")


def _parse_options(line: str) -> dict[str, Any]:
    """Parse the words after `%%llm`.

    Raises:
        LLMBadRequest: They do not match `USAGE`.
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
