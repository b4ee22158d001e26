"""Policies from a file: YAML, which executes nothing, or a Python file with policies at module level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llmkit.errors import LLMError, LLMEvaluationError
from llmkit.evals.policies import Below, Cascade, Mix, Policy, Split
from llmkit.evals.tasks.loader import DATA_SUFFIXES, execute_file

__all__ = ["load_policies"]

KINDS = {"cascade": {"when", "epochs"}, "mix": {"share"}, "split": {"choose", "default"}}


def load_policies(path: str | Path) -> dict[str, Policy]:
    """Return the policies of a file by name.

    A Python file is executed, and its `Cascade`, `Split` and `Mix` objects at module level are taken by their names. A
    YAML file is data: a mapping from name to policy.

    Raises:
        LLMEvaluationError: The file is missing, fails, or has no policy or one that cannot be read; the message names
            the policy.

    Example:
        >>> _ = Path("policies.yaml").write_text("careful: {cascade: [ollama/small, gemini/large], when: repaired}")
        >>> load_policies("policies.yaml")
        {'careful': Cascade(first='ollama/small', second='gemini/large', when='repaired', epochs=None)}
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise LLMEvaluationError(f"There is no file of policies {path}.")
    if file.suffix.lower() not in DATA_SUFFIXES:
        found: dict[str, Policy] = {
            name: each for name, each in vars(execute_file(file)).items() if isinstance(each, Cascade | Split | Mix)
        }
        if not found:
            raise LLMEvaluationError(f"{path} defines no policy: assign a Cascade, Split or Mix to a name.")
        return found
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise LLMEvaluationError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not content:
        raise LLMEvaluationError(f"{path}: a file of policies is a mapping from name to policy.")
    policies: dict[str, Policy] = {}
    for name, data in content.items():
        try:
            policies[str(name)] = _read_policy(data)
        except (LLMError, TypeError) as error:
            raise LLMEvaluationError(f"{path}: {name}: {error}") from None
    return policies


def _read_policy(data: Any) -> Policy:
    if isinstance(data, str):
        return data
    kind = next((kind for kind in KINDS if isinstance(data, Mapping) and kind in data), None)
    if kind is None:
        raise LLMEvaluationError(f"a policy is a route, or a mapping with {', '.join(KINDS)}.")
    unknown = sorted(map(str, set(data) - KINDS[kind] - {kind}))
    if unknown:
        raise LLMEvaluationError(f"unknown key {unknown[0]!r}; {kind} takes {', '.join(sorted(KINDS[kind]))}.")
    if kind == "split":
        return _read_split(data)
    parts = data[kind]
    if not isinstance(parts, list) or len(parts) != 2:
        raise LLMEvaluationError(f"{kind} is a list of two policies.")
    first, second = map(_read_policy, parts)
    if kind == "mix":
        share = data.get("share")
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise LLMEvaluationError("mix needs share, a number between 0 and 1.")
        return Mix(first, second, share)
    when = data.get("when", "failed")
    conditions = tuple(_read_condition(each) for each in (when if isinstance(when, list) else [when]))
    return Cascade(first, second, conditions[0] if len(conditions) == 1 else conditions, data.get("epochs"))


def _read_split(data: Mapping[str, Any]) -> Split:
    choose, default = data.get("choose"), data.get("default")
    if not isinstance(choose, dict) or not isinstance(data["split"], str):
        raise LLMEvaluationError("split is 'group' or 'metadata.KEY', and choose maps each value to a policy.")
    by_value = {value: _read_policy(each) for value, each in choose.items()}
    return Split(data["split"], by_value, None if default is None else _read_policy(default))


def _read_condition(data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data if isinstance(data, str) else str(data)
    threshold = data.get("threshold")
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if set(data) != {"below", "threshold"} or not isinstance(data["below"], str) or not is_number:
        raise LLMEvaluationError("a condition is a name, or {below: FIELD, threshold: NUMBER}.")
    return Below(data["below"], threshold)
