"""Variants that an evaluation compares: routes, routing policies, and prompts or parameters on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMEvaluationError, describe_validation
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.policies import Policy, describe_policy, identify_policy, is_policy, list_variants
from llmkit.evals.prompt import Content, Prompt, Template, as_messages, content_of
from llmkit.evals.tasks.task import (
    NAME,
    Task,
    compile_prompt,
    copy_parameters,
    describe_prompt,
    response_format_of,
)
from llmkit.types import LLMConstraints, LLMProfile, LLMRequest, Message, Route

if TYPE_CHECKING:
    from llmkit.service import LLMService

__all__ = [
    "PolicyVariant",
    "ResolvedVariant",
    "RouteLike",
    "Variant",
    "check_endpoints",
    "hash_variant",
    "read_target",
    "resolve_variants",
]

POLICY_PREFIX = "policy:"
DEFAULT_POLICY = "default"
DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to compare.

    Attributes:
        route: `provider/model`, pinned; or `policy:NAME`, where the router chooses and may fall back.
        prompt: Instead of the task's.
        parameters: On top of the task's and the evaluation's.
        label: Its name in the report; the route when None.
    """

    route: str | Route
    prompt: Prompt | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None


RouteLike: TypeAlias = str | Route | Variant


@dataclass(frozen=True, slots=True)
class ResolvedVariant:
    """A variant ready to be called. `route` is None where the router chooses.

    Attributes:
        constraints: A pinned route never falls back: the score would be another model's.
        planned: The route that should answer: the pinned one, or the first candidate of the router's policy.
        course: What it follows for each sample, for a `Cascade` and the like; None for a single call.
    """

    label: str
    service: LLMService
    route: Route | None
    constraints: LLMConstraints
    planned: Route | None
    policy: str | None
    prompt: Template | Callable[[Sample], Any]
    system: str | None
    parameters: Mapping[str, Any]
    description: Mapping[str, Any]
    course: PolicyVariant | None = None

    @property
    def parts(self) -> tuple[ResolvedVariant, ...]:
        """The variants that it may call: itself, or those that its policy names."""
        return (self,) if self.course is None else tuple(self.course.parts.values())

    def content(self, sample: Sample) -> Content:
        """Apply the prompt to a sample."""
        return content_of(self.prompt, sample)

    def sent(self, content: Content) -> tuple[Message, ...]:
        """Return the messages for a sample with this content."""
        return as_messages(content, self.system)

    def messages(self, sample: Sample) -> tuple[Message, ...]:
        """Return the messages for a sample."""
        return self.sent(self.content(sample))

    def digest(self, content: Content) -> str:
        """Return a short hash of everything that is sent for a sample of this content, to detect changes."""
        return hash_variant(read_target(self.description), content, self.parameters, self.system)

    def parameters_of(self, epoch: int) -> dict[str, Any]:
        """Return the parameters of one repeat. A seed grows by one with each, or all repeats would be the same."""
        parameters = dict(self.parameters)
        if parameters.get("seed") is not None:
            parameters["seed"] += epoch
        return parameters


@dataclass(frozen=True, slots=True)
class PolicyVariant:
    """A policy of several variants, ready to be followed.

    Attributes:
        name: Name of the policy.
        policy: The policy.
        parts: The variants that it names, by their labels.
        resolve: Resolves a label that only a function of the user's names.
    """

    name: str
    policy: Policy
    parts: Mapping[str, ResolvedVariant]
    resolve: Callable[[str], ResolvedVariant]

    def find(self, label: str) -> ResolvedVariant:
        """Return the variant of a label.

        Raises:
            LLMEvaluationError: It is not the label of one.
        """
        found = self.parts.get(label)
        return self.resolve(label) if found is None else found


def read_target(description: Mapping[str, Any]) -> str:
    """Return what a described variant calls, as it is hashed: a route, a router's policy, or the hash of a policy."""
    target: str = description.get("policy_sha256", description["route"])
    return target


def hash_variant(target: str, content: Content, parameters: Mapping[str, Any], system: str | None = None) -> str:
    """Return a short hash of target, messages and parameters."""
    # As the messages would be written, without making them.
    if isinstance(content, str):
        messages = [_turn("user", content)]
    else:
        messages = [message.model_dump(mode="json", exclude_defaults=True) for message in content]
    if system is not None:
        messages.insert(0, _turn("system", system))
    return sha256_of([target, messages, dict(parameters)])[:DIGEST_LENGTH]


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content} if content else {"role": role}


def resolve_variants(
    task: Task,
    routes: RouteLike | Iterable[RouteLike],
    *,
    service: LLMService,
    parameters: Mapping[str, Any],
    policies: Mapping[str, LLMService | Policy],
) -> tuple[ResolvedVariant, ...]:
    """Resolve the variants to compare. Sends nothing.

    Raises:
        LLMEvaluationError: There is none, one is unknown, or two have one label.
    """
    given: Sequence[RouteLike] = [routes] if isinstance(routes, str | Route | Variant) else list(routes)
    if not given:
        raise LLMEvaluationError("Name at least one route, for example ollama/llama3.2.")
    resolver = _VariantResolver(task, service, copy_parameters(parameters), policies)
    resolved = tuple(resolver.resolve(item) for item in given)
    labels = [variant.label for variant in resolved]
    for label in labels:
        if labels.count(label) > 1:
            raise LLMEvaluationError(f"Two routes are labelled {label!r}; give one of them Variant(..., label=...).")
    return resolved


def check_endpoints(variants: Iterable[ResolvedVariant]) -> None:
    """Check that the endpoints of these variants exist.

    Raises:
        LLMEvaluationError: One does not, or its table is wrong.
    """
    for variant in (part for each in variants for part in each.parts):
        if variant.route is not None:
            try:
                variant.service.router.check_endpoint(variant.route)
            except (LLMBadRequest, LLMConfigurationError) as error:
                raise LLMEvaluationError(error.message) from None


@dataclass(frozen=True, slots=True)
class _VariantResolver:
    task: Task
    service: LLMService
    parameters: Mapping[str, Any]
    policies: Mapping[str, LLMService | Policy]

    def resolve(self, item: RouteLike) -> ResolvedVariant:
        variant = item if isinstance(item, Variant) else self._from_text(item)
        label = _label(variant)
        prompt = self.task.prompt if variant.prompt is None else variant.prompt
        if variant.prompt is not None and self.task.solve is not None:
            raise LLMEvaluationError(f"Task {self.task.name} has solve=, so a variant of it takes no prompt=.")
        parameters = copy_parameters({**self.task.parameters, **self.parameters, **variant.parameters})
        target = variant.route
        if isinstance(target, str) and target.startswith(POLICY_PREFIX):
            return self._policy(target.removeprefix(POLICY_PREFIX), label, prompt, parameters)
        route = target if isinstance(target, Route) else _route(target)
        return self._build(label, self.service, prompt, parameters, route=route, planned=route)

    def _from_text(self, item: str | Route) -> Variant:
        text, at, name = str(item).strip().rpartition("@")
        if isinstance(item, Route) or not at:
            return Variant(item if isinstance(item, Route) else item.strip())
        if name not in self.task.prompts:
            known = ", ".join(self.task.prompts) or "none"
            raise LLMEvaluationError(f"Task {self.task.name} has no prompt {name!r} for {item!r}; it has: {known}.")
        return Variant(text, self.task.prompts[name], label=f"{text}@{name}")

    def _policy(self, name: str, label: str, prompt: Prompt | None, parameters: dict[str, Any]) -> ResolvedVariant:
        profiles = {str(profile) for profile in LLMProfile}
        if name not in self.policies and name not in profiles and name != DEFAULT_POLICY:
            known = ", ".join(dict.fromkeys([DEFAULT_POLICY, *LLMProfile, *self.policies]))
            raise LLMEvaluationError(f"Unknown policy {name!r}; known policies: {known}.")
        given = self.policies.get(name)
        if given is not None and is_policy(given):
            if prompt is None:
                raise LLMEvaluationError(
                    f"Task {self.task.name} has solve=, and the policy {name!r} chooses calls of prompts: choose in "
                    "the function, with model.chat(..., route=...)."
                )
            return self._course(name, given, label, prompt, parameters)
        service: LLMService = self.service if given is None else given
        if name in profiles and name not in self.policies:
            parameters = {**parameters, "profile": name}
        planned = self._first_candidate(service, parameters)
        return self._build(label, service, prompt, parameters, policy=name, planned=planned)

    def _course(
        self, name: str, policy: Policy, label: str, prompt: Prompt, parameters: dict[str, Any]
    ) -> ResolvedVariant:
        def resolve_part(part: str) -> ResolvedVariant:
            variant = self._from_text(part)
            if isinstance(variant.route, str) and variant.route.removeprefix(POLICY_PREFIX) in self.policies:
                raise LLMEvaluationError(f"The policy {name!r} names {part!r}: write that policy out inside it.")
            own = prompt if variant.prompt is None else variant.prompt
            return self.resolve(Variant(variant.route, own, parameters, label=variant.label or part))

        parts = {part: resolve_part(part) for part in list_variants(policy)}
        plain = self._build(label, self.service, prompt, parameters, policy=name, planned=None)
        digests = [identify_policy(policy), {part: dict(variant.description) for part, variant in parts.items()}]
        description = {
            **plain.description,
            "calls": describe_policy(policy),
            "policy_sha256": f"{POLICY_PREFIX}{name} {sha256_of(digests)}",
        }
        course = PolicyVariant(name, policy, parts, resolve_part)
        return replace(plain, description=description, course=course)

    def _first_candidate(self, service: LLMService, parameters: Mapping[str, Any]) -> Route | None:
        schema = response_format_of(self.task)
        request = LLMRequest.model_validate({"messages": "plan", "response_format": schema, **parameters})
        return next(iter(service.router.explain(request).candidates), None)

    def _build(
        self,
        label: str,
        service: LLMService,
        prompt: Prompt | None,
        parameters: Mapping[str, Any],
        *,
        planned: Route | None,
        route: Route | None = None,
        policy: str | None = None,
    ) -> ResolvedVariant:
        description = {"route": str(route) if route else f"{POLICY_PREFIX}{policy}", "prompt": describe_prompt(prompt)}
        return ResolvedVariant(
            label=label,
            service=service,
            route=route,
            constraints=LLMConstraints(allow_fallback=route is None),
            planned=planned,
            policy=policy,
            prompt=compile_prompt(prompt),
            system=self.task.system,
            parameters=parameters,
            description={**description, "parameters": dict(parameters)},
        )


def _label(variant: Variant) -> str:
    label = str(variant.route) if variant.label is None else variant.label
    if not NAME.fullmatch(label.replace("@", "")) or not label.isprintable():
        raise LLMEvaluationError(
            f"The label {label!r:.140} is empty, longer than 120, or has white space, ',' or characters that cannot be "
            "printed."
        )
    return label


def _route(text: str) -> Route:
    try:
        return Route.parse(text)
    except ValidationError as error:
        problem = "; ".join(describe_validation(error))
        raise LLMEvaluationError(f"{problem}; a routing policy is written policy:NAME") from None
