"""Changes to an `llmkit.toml` that keep its comments and order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.endpoints.tables import TABLE, BadEndpointError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

__all__ = ["add_table", "remove_table"]


def add_table(path: Path, name: str, fields: Mapping[str, Any], *, replace: bool) -> None:
    """Add the table of an endpoint to a file, which is created if needed.

    Args:
        path: The file.
        name: The endpoint.
        fields: The fields of its table, in order.
        replace: Whether to change an existing table: the given fields of it, and no others.

    Raises:
        BadEndpointError: The endpoint is in the file and must not be replaced, or the file cannot be read or written.
    """
    import tomlkit

    document = _read(path)
    tables = document.get(TABLE)
    if tables is None:
        # A super table has no line of its own.
        tables = document[TABLE] = tomlkit.table(is_super_table=True)
    if name in tables and not replace:
        raise BadEndpointError(f"{path}, [{TABLE}.{name}]: exists already; use --replace to change it")
    if name not in tables:
        tables[name] = tomlkit.table()
    for field, value in fields.items():
        tables[name][field] = value
    _write(path, document)


def remove_table(path: Path, name: str) -> bool:
    """Remove the table of an endpoint; False when the file has none.

    Raises:
        BadEndpointError: The file cannot be read or written.
    """
    document = _read(path)
    tables = document.get(TABLE, {})
    if name not in tables:
        return False
    del tables[name]
    if not tables:
        del document[TABLE]
    _write(path, document)
    return True


def _read(path: Path) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not valid TOML"
        raise BadEndpointError(f"{path} cannot be read: {why}") from None
    if not isinstance(document.get(TABLE, {}), Mapping):
        raise BadEndpointError(f"{path}, {TABLE}: must contain one table for each endpoint, [{TABLE}.NAME]")
    return document


def _write(path: Path, document: TOMLDocument) -> None:
    """Replace the file as a whole, so that a process that dies here leaves the old one."""
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(document.as_string())
            # A new file would have the permissions of a private one, and this contains no secret.
            Path(draft).chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
            Path(draft).replace(target)
        except OSError:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadEndpointError(f"{path} cannot be written: {error.strerror}") from None
