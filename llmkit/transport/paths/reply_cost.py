"""Cost of an answer of Gemini or OpenAI from LiteLLM's price per token.

Its full calculation costs as much as a bare request.

Only for answers that cost a sum over plain text tokens, of models that LiteLLM prices that way. Everything else
(cached tokens, pictures, long prompts, service tiers, searches) LiteLLM calculates itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GEMINI_WIRE", "OPENAI_WIRE", "PriceWire", "Prices"]

# Of the models that LiteLLM knows, none is dearer for a prompt shorter than 128,000 tokens.
PLAIN_TOKENS = 100_000
_PLAIN_USAGE = frozenset(
    {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount", "promptTokensDetails"}
)
_RATES = ("input_cost_per_token", "output_cost_per_token", "output_cost_per_reasoning_token")

_Rates = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Units:
    """Prices of one prompt token, text token and reasoning token in USD; None where LiteLLM has to calculate."""

    listed: _Rates
    usd: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class PriceWire:
    """Form in which a provider reports tokens.

    Attributes:
        provider: LiteLLM's name of the provider.
        is_plain: Whether an answer with these headers costs a sum over its tokens of text.
        make_reply: The JSON of an answer by this model with these numbers of tokens of prompt, text and reasoning.
    """

    provider: str
    is_plain: Callable[[Mapping[str, Any], Mapping[str, str]], bool]
    make_reply: Callable[[str, int, int, int], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one provider's models.

    Args:
        wire: How it reports tokens.
        read: LiteLLM's reading of a reply, for a model.
        calculate: LiteLLM's calculation for a reply that was read and the requested model; None when it has no price.
        listed: LiteLLM's list of models, which may be changed while the process runs.
    """

    wire: PriceWire
    read: Callable[[str, dict[str, Any]], Any]
    calculate: Callable[[Any, str], float | None]
    listed: Mapping[str, Mapping[str, Any]]
    _known: dict[tuple[str, str], _Units] = field(default_factory=dict)

    def cost_usd(
        self, completion: Any, model: str, reply: Mapping[str, Any], headers: Mapping[str, str]
    ) -> float | None:
        """Return the cost that LiteLLM would report for this answer, or None if it has no price.

        Args:
            completion: LiteLLM's reading of the answer.
            model: The requested model.
            reply: The answer's JSON.
            headers: The answer's HTTP headers.
        """
        known = self.by_the_token_usd(completion, model, reply, headers)
        return self.calculate(completion, model) if known is None else known

    def by_the_token_usd(
        self, completion: Any, model: str, reply: Mapping[str, Any], headers: Mapping[str, str]
    ) -> float | None:
        """Return the same where it is a sum over plain tokens, else None."""
        units = self._units(model, str(completion.model)).usd if self.wire.is_plain(reply, headers) else None
        if units is None or completion.usage.prompt_tokens > PLAIN_TOKENS:
            return None
        usage = completion.usage
        reasoning = getattr(usage.completion_tokens_details, "reasoning_tokens", None) or 0
        return _sum(units, usage.prompt_tokens, usage.completion_tokens - reasoning, reasoning)

    def _units(self, model: str, served: str) -> _Units:
        listed = tuple(
            self.listed.get(name, {}).get(rate)
            for name in (f"{self.wire.provider}/{model}", f"{self.wire.provider}/{served}", model, served)
            for rate in _RATES
        )
        units = self._known.get((model, served))
        if units is None or units.listed != listed:
            units = self._known[(model, served)] = _Units(listed, self._look_up_prices(model, served))
        return units

    def _look_up_prices(self, model: str, served: str) -> tuple[float, float, float] | None:
        """Return the prices of one token each; None unless they account for LiteLLM's price of many."""
        one = [self._price(model, served, *counts) for counts in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
        many = (PLAIN_TOKENS, 77, 33)
        prompt, text, reasoning = one
        if prompt is None or text is None or reasoning is None:
            return None
        units = (prompt, text, reasoning)
        return units if _sum(units, *many) == self._price(model, served, *many) else None

    def _price(self, model: str, served: str, prompt: int, text: int, reasoning: int) -> float | None:
        return self.calculate(self.read(model, self.wire.make_reply(served, prompt, text, reasoning)), model)


def _sum(units: tuple[float, float, float], prompt: int, text: int, reasoning: int) -> float:
    # In LiteLLM's order of additions: floating-point sums differ in the last digit otherwise.
    return float(prompt) * units[0] + (float(text) * units[1] + float(reasoning) * units[2])


def _is_plain_gemini(reply: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    usage = reply.get("usageMetadata")
    if not isinstance(usage, dict) or not usage.keys() <= _PLAIN_USAGE or "x-gemini-service-tier" in headers:
        return False
    details = usage.get("promptTokensDetails", [])
    return all(detail.get("modality") == "TEXT" for detail in details) and not any(
        "groundingMetadata" in candidate for candidate in reply.get("candidates", [])
    )


def _make_gemini_reply(served: str, prompt: int, text: int, reasoning: int) -> dict[str, Any]:
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": text, "thoughtsTokenCount": reasoning}
    candidate = {"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}
    usage = {**counts, "totalTokenCount": prompt + text + reasoning}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": served}


def _is_plain_openai(reply: Mapping[str, Any], _headers: Mapping[str, str]) -> bool:
    usage = reply.get("usage")
    if not isinstance(usage, dict) or reply.get("service_tier") not in (None, "default"):
        return False
    prompt, output = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    special = [count for name, count in {**prompt, **output}.items() if name != "reasoning_tokens"]
    return not any(special)


def _make_openai_reply(served: str, prompt: int, text: int, reasoning: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": text + reasoning,
        "total_tokens": prompt + text + reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    message = {"role": "assistant", "content": "x"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "created": 1, "model": served, "choices": [choice], "usage": usage}


GEMINI_WIRE = PriceWire("gemini", _is_plain_gemini, _make_gemini_reply)
OPENAI_WIRE = PriceWire("openai", _is_plain_openai, _make_openai_reply)
