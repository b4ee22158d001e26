"""Cause, check and fix of every error, for docs/errors.md."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HELP", "Help"]


class Help(NamedTuple):
    """Help for one kind of error."""

    cause: str
    check: str
    fix: str


# By error code.
HELP = {
    "unknown": Help(
        "Something that no rule recognises, or a call that could not run: the session was closed during it, or the "
        "program is ending.",
        "`error.__cause__`, and `llmkit runs --show ID` with `error.run_id`.",
        "Follow the message; repeat the call if nothing was wrong with it.",
    ),
    "configuration": Help(
        "A setting, a key, a workspace or an optional package is missing or wrong.",
        "`llmkit doctor` lists every setting that does not fit.",
        "Set the variable that the message names, and open a new session: settings are read once.",
    ),
    "bad_request": Help(
        "llmkit refused an argument before sending, or the provider refused the request.",
        "`error.attempts`: empty if nothing was sent.",
        "Change the argument that the message names.",
    ),
    "context_overflow": Help(
        "The prompt and the reserved answer need more tokens than the model's window.",
        "`s.facts(route)`, and the input tokens of similar calls in `s.runs()`.",
        "Shorten the prompt, split the text, lower `max_output_tokens`, or choose a model with a larger window.",
    ),
    "unsupported": Help(
        "The model has no tools, images, schema or other feature that the request needs.",
        "`s.facts(route)` and `s.explain(...)`.",
        "Choose another route, or leave out `route=` so that the router does.",
    ),
    "no_route": Help(
        "No provider that is set up fulfils the request and its constraints.",
        "`print(s.explain(...))` names the reason for each route.",
        "Relax the constraint, or set up a provider: `llmkit doctor`.",
    ),
    "authentication": Help(
        "The provider does not know the key.",
        "The key in the provider's console; quotes or spaces around it in `.env`.",
        "Set the right key and open a new session.",
    ),
    "permission_denied": Help(
        "The key is valid and may not use this model, region or method.",
        "The rights and restrictions of the key in the provider's console.",
        "Grant the right, or choose a model that the key may use.",
    ),
    "model_not_found": Help(
        "The provider has no model of this name.",
        "`llmkit doctor` lists the models of Ollama; names include their tag.",
        "Correct the name, or `ollama pull NAME`.",
    ),
    "quota_exhausted": Help(
        "A daily quota, a spending cap or prepaid credit is used up.",
        "The quota page of the provider; the message has the provider's words.",
        "Wait for the reset, raise the quota, or use another route. Repeating the call continues where it stopped.",
    ),
    "unavailable": Help(
        "The server cannot be reached, is overloaded, or broke off.",
        "`llmkit doctor`; for Ollama, `ollama ps` and its log.",
        "Start the server or correct its address, then repeat the call.",
    ),
    "timeout": Help(
        "No complete answer within `timeout_s`, retries included.",
        "`latency_ms` of similar calls in `s.runs()`; a first call may load the model.",
        "Raise `timeout_s` or `LLM_DEFAULT_TIMEOUT_S`, lower `max_output_tokens`, or lower `concurrency`.",
    ),
    "rate_limited": Help(
        "More requests or tokens per minute than the provider allows; retries were not enough.",
        "`error.retry_after_s`, and the limits of your plan.",
        "Lower `LLM_CONCURRENCY_LIMIT`, or set requests and tokens per minute: see limits.",
    ),
    "malformed_reply": Help(
        "Something other than the provider answered: a proxy, a login page, another server.",
        "The address in the settings, opened in a browser.",
        "Correct the address, or ask the administrator of the proxy.",
    ),
    "all_routes_failed": Help(
        "Every candidate of the plan failed.",
        "`error.errors` has one error for each route.",
        "Fix the first of them; `llmkit doctor` checks all providers.",
    ),
    "unusable_answer": Help(
        "The model answered and billed, and the answer cannot be used.",
        "`llmkit runs --show ID` with `error.run_id`.",
        "See the more specific error below it, or change the prompt.",
    ),
    "prompt_truncated": Help(
        "The server cut the prompt to its window and answered the rest.",
        "The window that the message names; `OLLAMA_CONTEXT_LENGTH` of the server.",
        "Shorten the prompt, or let the server use a larger window.",
    ),
    "output_truncated": Help(
        "An answer that must be complete, such as JSON, reached the output limit.",
        "`error.text` has the part that was paid for.",
        "Raise `max_output_tokens`, or ask for less.",
    ),
    "reasoning_exhausted": Help(
        "Hidden reasoning used up the output limit.",
        "`reasoning_tokens` in `s.runs()`.",
        "Raise `max_output_tokens`, or switch reasoning off with `thinking=False`.",
    ),
    "content_blocked": Help(
        "A filter of the provider blocked the prompt or the answer.",
        "The reason in the message.",
        "Rephrase the prompt, or use another model.",
    ),
    "empty_reply": Help(
        "The answer has neither text nor a tool call.",
        "The stop sequences and the end of the prompt: a base model may see nothing to add.",
        "Change the prompt or `stop`, or raise `temperature`.",
    ),
    "invalid_output": Help(
        "The answer does not fit the output type, after repair and reasks.",
        "`error.raw_text` and `error.validation_errors`.",
        "Add `examples`, simplify the type, raise `reasks`, or use a model whose answers obey a schema "
        "(`llmkit doctor --probe`).",
    ),
    "idempotency_conflict": Help(
        "The key was used for another request, or another process continued the conversation.",
        "`s.runs()` where `idempotency_key` is the key.",
        "Use another key, or reopen the conversation.",
    ),
    "no_recording": Help(
        "A replaying session was asked something that its cassette does not contain.",
        "The difference that the message names; `llmkit cassette verify`.",
        "Undo the change, or record the cassette again.",
    ),
    "in_progress": Help(
        "Another process is making this very call.",
        "`error.run_id` and `error.age_s`.",
        "Wait, and repeat the call; an abandoned one is taken over.",
    ),
    "solve": Help(
        "The function of a task raised an exception, returned something that is no JSON, or never ended.",
        "The class, the message and the line in `error_message` of `report.samples()`.",
        "Correct the function. Its calls are stored: those that are the same are not paid again.",
    ),
    "store": Help(
        "The database or the cache cannot be read or written.",
        "Free space, rights and the path that the message names; `llmkit doctor`.",
        "Follow the message. Answers that were stored are kept.",
    ),
    "budget_exhausted": Help(
        "What is left of the budget is less than the next request may cost.",
        "`llmkit eval report RUN`.",
        "Repeat the command with a larger budget: finished samples are not paid again.",
    ),
    "evaluation": Help(
        "A task, its scorers or a stored run cannot be used as asked.",
        "The name and the reason in the message; `llmkit eval list`.",
        "Correct the task, or use another name.",
    ),
    "dataset": Help(
        "A file of samples has a line that cannot be read.",
        "The file, line and field in the message.",
        "Correct the line; `input`, `target` and `id` are the names of the columns.",
    ),
}
