"""Context windows that turned out too small: one more try with the room the model has, and what is learnt from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmkit.ports import ClientReply
from llmkit.providers import CallArguments, ProviderSpec, compute_max_prompt_tokens, estimate_prompt_tokens
from llmkit.types import LLMRequest, Route

__all__ = ["CallWindow", "MeasuredPrompts"]

ROOM_FOR_ANSWER_TOKENS = 1024


class MeasuredPrompts:
    """How many times the estimated tokens the prompts of each route really had, where the estimate was too low.

    Without it every prompt of a study would first fail, and an Ollama server would load the model again for
    each change of the window. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._ratios: dict[Route, float] = {}

    def get_ratio(self, route: Route) -> float:
        """Return the largest ratio seen, at least 1."""
        return self._ratios.get(route, 1.0)

    def note(self, route: Route, ratio: float) -> None:
        """Remember a ratio if it is the largest of its route."""
        self._ratios[route] = max(ratio, self.get_ratio(route))


@dataclass(slots=True)
class CallWindow:
    """The context window of one call.

    Args:
        spec: The provider.
        route: The model.
        request: The prompt.
        measured: What earlier prompts of the client had.
    """

    spec: ProviderSpec
    route: Route
    request: LLMRequest
    measured: MeasuredPrompts
    _last: CallArguments | None = field(init=False, default=None)
    _is_widened: bool = field(init=False, default=False)

    def fit(self, arguments: CallArguments) -> CallArguments:
        """Return the arguments with the window that this try should ask for."""
        ratio = self.measured.get_ratio(self.route)
        if arguments.context_tokens is not None and (self._is_widened or ratio > 1):
            tokens = self._most_tokens(arguments) if self._is_widened else int(ratio * self._estimate()) + self._room
            arguments = self.spec.resize_window(arguments, max(tokens, arguments.context_tokens))
        self._last = arguments
        return arguments

    def widen(self) -> bool:
        """Return whether the model has more room than the last try asked for; the next try then asks for it."""
        last = self._last
        if self._is_widened or last is None or last.context_tokens is None:
            return False
        wider = self.spec.resize_window(last, self._most_tokens(last)).context_tokens
        self._is_widened = wider is not None and wider > last.context_tokens
        return self._is_widened

    def note_reply(self, reply: ClientReply) -> None:
        """Remember how many tokens the prompt really had, after it did not fit at first."""
        counted = None if reply.usage.estimated else reply.usage.input_tokens
        # Without a count all that is known is that the estimate was too low.
        self.measured.note(self.route, 2.0 if counted is None else counted / self._estimate())

    @property
    def _room(self) -> int:
        return self.request.max_output_tokens or ROOM_FOR_ANSWER_TOKENS

    def _estimate(self) -> int:
        return estimate_prompt_tokens(self.request)

    def _most_tokens(self, arguments: CallArguments) -> int:
        # At least twice the window: tokens of images are only estimated.
        return max(compute_max_prompt_tokens(self.request) + self._room, 2 * (arguments.context_tokens or 0))
