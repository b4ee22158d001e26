"""Interpretation of replies with status 200: answers, and failures that look like answers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

from llmkit.errors import (
    LLMContentBlocked,
    LLMEmptyReply,
    LLMError,
    LLMOutputTruncated,
    LLMPromptTruncated,
    LLMReasoningExhausted,
    LLMUnusableAnswer,
)
from llmkit.ports import ClientReply
from llmkit.providers import (
    ReplyFacts,
    compute_max_prompt_tokens,
    compute_min_prompt_tokens,
    count_words,
    surely_exceeds,
)
from llmkit.providers.prompt_tokens import MOST_CHARS_PER_TOKEN
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.http.logprobs import summarize_logprobs
from llmkit.types import MOST_TOKENS, FinishReason, LLMRequest, TokenUsage, ToolCall

__all__ = ["read_prompt_usage", "read_reply", "verdict"]

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
# Context windows are multiples of this.
WINDOW_STEP_TOKENS = 1024
SMALLEST_WINDOW_TOKENS = 128
MOST_TAG_CHARS = 12
_CLOSING_TAG = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def read_reply(completion: Any, exchange: Exchange, request: LLMRequest) -> ClientReply:
    """Read LiteLLM's `ModelResponse`, and the provider's own JSON where it has more.

    Args:
        completion: What `litellm.acompletion` returned.
        exchange: The record of the request.
        request: The request.
    """
    facts = exchange.facts
    # A reply of Gemini's without candidates has no choice at all.
    choice = completion.choices[0] if completion.choices else None
    message = choice.message if choice is not None else None
    calls = tuple(_tool_call(call, number) for number, call in enumerate(getattr(message, "tool_calls", None) or ()))
    finish_reason = _FINISH_REASONS.get(str(getattr(choice, "finish_reason", "")), "unknown")
    if facts.ended_by is not None and facts.blocked is None:
        finish_reason = "unknown"
    text = drop_reasoning(_read_text(message)) if exchange.spec.writes_reasoning_tags else _read_text(message)
    logprobs = None
    if request.logprobs:
        logprobs = summarize_logprobs(facts.token_logprobs, text or "".join(call.arguments for call in calls[:1]))
    # LiteLLM's estimate of a stream would be one of what has arrived, which is not what was billed.
    estimates = exchange.spec.estimates_missing_counts and not exchange.is_folded
    usage = _usage(getattr(completion, "usage", None), facts, estimates=estimates)
    if exchange.has_broken and not facts.counts_reported:
        usage = read_prompt_usage(exchange)
    reply = ClientReply(
        text=text,
        tool_calls=calls,
        finish_reason="tool_calls" if calls and finish_reason in {"stop", "unknown"} else finish_reason,
        usage=usage,
        response_model=_response_model(completion),
        cost_usd=_cost_usd(completion, exchange, usage),
        logprobs=logprobs,
    )
    return _with_warnings(reply, exchange, request, facts)


def read_prompt_usage(exchange: Exchange) -> TokenUsage:
    """Return the tokens of the prompt, if known, for an answer of which only a part has arrived.

    Some providers count the prompt at the beginning of a stream. What they count of the answer until then is not what
    they bill for it.
    """
    return TokenUsage(input_tokens=_read_count(exchange.facts.prompt_tokens))


def verdict(reply: ClientReply, exchange: Exchange, request: LLMRequest) -> LLMError | None:
    """Return the error that this reply amounts to, or None when it is an answer."""
    facts = exchange.facts
    model = str(exchange.arguments.kwargs["model"]).partition("/")[2]
    if facts.blocked or reply.finish_reason == "content_filter":
        kind: type[LLMUnusableAnswer] | None = LLMContentBlocked
    elif _prompt_was_cut(facts, exchange, request):
        kind = LLMPromptTruncated
    elif reply.finish_reason == "length":
        kind = _kind_of_cut(reply, request)
    else:
        kind = LLMEmptyReply if _is_empty(reply) else None
    if kind is None:
        return None
    limit = request.max_output_tokens or exchange.arguments.kwargs.get("max_tokens")
    message = _MESSAGES[kind].format(
        label=exchange.spec.label,
        model=model,
        reason=facts.blocked or facts.ended_by or facts.unreadable or "neither text nor a tool call",
        tokens=facts.prompt_tokens,
        limit=f"limit of {limit} tokens" if limit else "output limit",
        cut=exchange.spec.hints["cut"],
    )
    error = kind(message, provider=exchange.spec.provider, model=model, status_code=exchange.status)
    if isinstance(error, LLMOutputTruncated):
        error.text = reply.text
    return error


_MESSAGES: dict[type[LLMUnusableAnswer], str] = {
    LLMContentBlocked: "{label} blocked the prompt or the answer ({reason}): reword it.",
    LLMPromptTruncated: "{label} cut the prompt to {tokens} tokens, the context window of {model}, and answered the "
    "rest: shorten the prompt, or use a model with a larger window.",
    LLMReasoningExhausted: "{model} used up its {limit} before it wrote an answer, in hidden reasoning: raise "
    "max_output_tokens.",
    LLMOutputTruncated: "{model} was cut off at its {limit}: {cut}.",
    LLMEmptyReply: "{label} answered without content: {reason}. Another try may do.",
}


def _is_empty(reply: ClientReply) -> bool:
    return not reply.text.strip() and not reply.tool_calls


def _kind_of_cut(reply: ClientReply, request: LLMRequest) -> type[LLMUnusableAnswer] | None:
    """Return the error for a cut answer; None for a text, which is useful as far as it goes and has a warning.

    Half a JSON text or half a tool call is useless.
    """
    if _is_empty(reply):
        return LLMReasoningExhausted
    return None if request.response_format is None and not request.tools else LLMOutputTruncated


def _prompt_was_cut(facts: ReplyFacts, exchange: Exchange, request: LLMRequest) -> bool:
    """Return whether the server read as many tokens as a window can contain, and so probably not all.

    The window is the requested one, or a smaller one of the model's own: then the count is a whole multiple
    of 1,024 and smaller than any tokenizer would make of a prompt of this length. A server that drops the oldest
    messages instead counts less than its window, and then the prompt has more words than tokens were read.

    Where no window was asked for (Ollama cuts in other protocols than its own too), only a count that looks like a
    window and is below the number of words is evidence enough: an answer that was paid is not given up for less.
    """
    window, counted = exchange.arguments.context_tokens, facts.prompt_tokens
    if counted is None:
        return False
    if window is None:
        looks_like_window = counted >= SMALLEST_WINDOW_TOKENS and (
            counted % WINDOW_STEP_TOKENS == 0 or counted.bit_count() == 1
        )
        return looks_like_window and facts.counts_reported and counted < count_words(request)
    if counted >= window - 1:
        # A count that no tokenizer makes of this prompt, such as 10**12, is an error of the server's and no evidence.
        return counted <= max(window, compute_max_prompt_tokens(request))
    if counted % WINDOW_STEP_TOKENS == 0 and counted < compute_min_prompt_tokens(request):
        return True
    if _compute_most_words(request) <= window:
        return False  # Most prompts: they fit, whatever was counted.
    return _fewer_than_sent(facts, request) and (count_words(request) > window or surely_exceeds(request, window))


def _with_warnings(reply: ClientReply, exchange: Exchange, request: LLMRequest, facts: ReplyFacts) -> ClientReply:
    warnings = []
    if reply.finish_reason == "length":
        warnings.append(_describe_cut(exchange, request))
    if facts.ended_by is not None:
        warnings.append(f"{exchange.spec.label} ended the answer early: {facts.ended_by}.")
    wants_schema = request.response_format is not None and request.response_format.json_schema is not None
    if wants_schema and exchange.sent_schema is None:
        warnings.append(f"{exchange.spec.label} was not given the schema as a constraint, only as part of the prompt.")
    wants_json = request.response_format is not None and not wants_schema
    if wants_json and "response_format" not in exchange.arguments.kwargs:
        warnings.append(f"{exchange.spec.label} was not asked for JSON, only the prompt asks for it.")
    if request.logprobs and reply.logprobs is None:
        warnings.append(f"{exchange.spec.label} sent no log-probabilities: {exchange.spec.hints['logprobs']}.")
    may_cut = exchange.arguments.context_tokens is not None or exchange.spec.is_declared_local
    if may_cut and _fewer_than_sent(facts, request):
        warnings.append(
            f"{exchange.spec.label} counted {facts.prompt_tokens} tokens, far fewer than the prompt should have: "
            "it may have left out the oldest messages."
        )
    return replace(reply, warnings=tuple(warnings)) if warnings else reply


def _describe_cut(exchange: Exchange, request: LLMRequest) -> str:
    if request.max_output_tokens is not None:
        return f"The answer stops at the limit of {request.max_output_tokens} tokens."
    limit = exchange.arguments.kwargs.get("max_tokens")
    default = f"default limit of {limit} tokens" if limit else "provider's output limit"
    return f"The answer was cut off at the {default}: {exchange.spec.hints['cut']}."


def _fewer_than_sent(facts: ReplyFacts, request: LLMRequest) -> bool:
    """Return whether the server counted fewer tokens than the messages can have. It must have reported a count."""
    if not facts.counts_reported or facts.prompt_tokens is None:
        return False
    if facts.prompt_tokens < compute_min_prompt_tokens(request):
        return True
    return facts.prompt_tokens < _compute_most_words(request) and facts.prompt_tokens < count_words(request)


def _compute_most_words(request: LLMRequest) -> int:
    """Return an upper bound on the words of the messages, without reading them: a word and a blank are 2 characters."""
    return (MOST_CHARS_PER_TOKEN // 2) * (compute_min_prompt_tokens(request) + 1)


def _tool_call(call: Any, number: int) -> ToolCall:
    arguments = call.function.arguments
    return ToolCall(
        id=_replace_surrogates(str(call.id or f"call_{number}")),
        name=_replace_surrogates(str(call.function.name or "")),
        # A tool without parameters may be called without arguments, and no text is no JSON.
        arguments=_replace_surrogates(arguments)
        if arguments and isinstance(arguments, str)
        else json.dumps(arguments or {}),
    )


def _read_text(message: Any) -> str:
    text = getattr(message, "content", None) or ""
    if not isinstance(text, str):
        raise TypeError(f"the text of the reply is of type {type(text).__name__}")
    return text


def drop_reasoning(text: str) -> str:
    """Return the answer without the reasoning before it, of which LiteLLM knows only the form `<think>...</think>`.

    Some templates put the opening tag into the prompt, so that the reply has only `</think>`, at an end of a line. A
    reply that is cut before the closing tag is all reasoning.
    """
    opening = text.lstrip()[:MOST_TAG_CHARS].lower()
    is_open = opening.startswith(("<think>", "<thinking>"))
    closing = _CLOSING_TAG.search(text)
    if closing is None:
        return "" if is_open else text
    if not is_open and ("<think" in text[: closing.start()] or not _stands_at_line_end(text, closing)):
        return text  # An answer that is about such tags.
    return text[closing.end() :].lstrip()


def _stands_at_line_end(text: str, tag: re.Match[str]) -> bool:
    before, after = text[: tag.start()].rstrip(" "), text[tag.end() :].lstrip(" ")
    return before[-1:] in {"", "\n"} or after[:1] in {"", "\n"}


def _replace_surrogates(text: str) -> str:
    # Half of a surrogate pair has an escape in JSON, but can be neither printed nor stored.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _response_model(completion: Any) -> str | None:
    model = getattr(completion, "model", None)
    if not model:
        return None
    return _replace_surrogates(str(model).removeprefix("ollama_chat/").removeprefix("hosted_vllm/"))


def _usage(usage: Any, facts: ReplyFacts, *, estimates: bool) -> TokenUsage:
    """Return token counts. Those that the provider did not send are unknown, or LiteLLM's estimate."""
    if usage is None or not (facts.counts_reported or estimates):
        return TokenUsage()
    prompt, output = getattr(usage, "prompt_tokens_details", None), getattr(usage, "completion_tokens_details", None)
    return TokenUsage(
        input_tokens=_read_count(usage.prompt_tokens),
        output_tokens=_read_count(usage.completion_tokens),
        total_tokens=_read_count(usage.total_tokens),
        cached_input_tokens=_read_count(getattr(prompt, "cached_tokens", None)),
        reasoning_tokens=_read_count(getattr(output, "reasoning_tokens", None)),
        estimated=not facts.counts_reported,
    )


def _read_count(value: Any) -> int | None:
    """Return a number of tokens; None for one that cannot be true."""
    return int(value) if isinstance(value, int | float) and 0 <= value <= MOST_TOKENS else None


def _cost_usd(completion: Any, exchange: Exchange, usage: TokenUsage) -> float | None:
    if not exchange.spec.reports_cost or usage.estimated or usage.input_tokens is None:
        return None
    cost = getattr(completion, "_hidden_params", {}).get("response_cost")
    return float(cost) if cost and math.isfinite(cost) and cost > 0 else None
