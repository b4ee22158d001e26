"""Bounds and estimates of a prompt's tokens, before any tokenizer has seen it. Pure: no I/O, no state."""

from __future__ import annotations

import json
import re
from collections import Counter

from llmkit.types import Attachment, LLMRequest

__all__ = [
    "compute_max_prompt_tokens",
    "compute_min_prompt_tokens",
    "count_words",
    "estimate_prompt_tokens",
    "estimate_text_tokens",
    "surely_exceeds",
]

# No tokenizer in use packs running text more tightly than this.
MOST_CHARS_PER_TOKEN = 8
TOKENS_PER_MESSAGE = 8
# A chat template adds text around a conversation; the longest instructions for tools take about 200 tokens.
TOKENS_OF_A_TEMPLATE = 256
# Models that cut an image into tiles take the most (LLaVA 1.6: 2,880 tokens); others take 256 or more.
TOKENS_PER_IMAGE = 3_000
# A page of a PDF is 258 tokens (https://ai.google.dev/gemini-api/docs/document-processing) and rarely below 5 kB.
FILE_BYTES_PER_TOKEN = 20

# Longer runs of letters are no words: DNA, base64, hashes. (The longest German compounds in use have 36.)
LONGEST_WORD = 24
# Words of up to 8 letters take 1 or 2 tokens. Over English, code, CSV, JSON and 8 other languages the estimate is 1.1
# to 3.2 times what cl100k counts, while one token per 3 bytes was 0.4 times of it for emoji and a third for Gemma's
# digits.
LETTERS_PER_TOKEN = 4
LONG_WORD = 8
_RUN = re.compile(r"[A-Za-z0-9]+")
_BLANKS = re.compile(r"\s{2,}|[^\S ]")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def estimate_text_tokens(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few, in linear time.

    Digits, symbols and whatever is no word count one token per byte: that is what the tokenizer of Gemma 3 makes of
    numbers, and others come close for hexadecimal, base64 and emoji.
    """
    # Counted first, because words and symbols repeat: a loop over every piece takes 5 times as long.
    runs = Counter(_RUN.findall(text))
    others = Counter(_RUN.sub("", text))
    # Indentation and empty lines are packed by every tokenizer of code, and a single blank belongs to the next word.
    blanks = sum((len(blank) + 1) // 2 for blank in _BLANKS.findall(text))
    tokens = sum(count * _estimate_run(run) for run, count in runs.items())
    return blanks + tokens + sum(count * _count_char(char) for char, count in others.items() if not char.isspace())


def _estimate_run(run: str) -> int:
    if len(run) > LONGEST_WORD or not run.isalpha():
        return len(run) + 1  # The blank before a digit is a token too.
    return sum(
        -(-len(word) // (2 if word.isupper() else LETTERS_PER_TOKEN)) + (len(word) > LONG_WORD)
        for word in _WORD.findall(run)
    )


def _count_char(char: str) -> int:
    """Estimate the tokens of a symbol or a character beyond ASCII; what no vocabulary contains is spelled in bytes."""
    if char <= "\u07ff":
        return 1
    if "\u3000" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7a3":
        return 2
    return 4 if char > "\uffff" else 3


def _list_texts(request: LLMRequest) -> list[str]:
    texts = [message.content for message in request.messages]
    texts += [call.name + call.arguments for message in request.messages for call in message.tool_calls]
    texts += [tool.name + tool.description + json.dumps(tool.parameters) for tool in request.tools]
    return texts


def estimate_prompt_tokens(request: LLMRequest) -> int:
    """Estimate the prompt's tokens, rather too many than too few: 3,000 per image, 50 per kB of PDF."""
    texts = sum(map(estimate_text_tokens, _list_texts(request))) + TOKENS_PER_MESSAGE * (len(request.messages) + 1)
    return texts + sum(map(_estimate_attachment_tokens, request.attachments))


def compute_max_prompt_tokens(request: LLMRequest) -> int:
    """Return an upper bound on the prompt's tokens, output schema included; images and PDF are estimated.

    No tokenizer produces more tokens than a text has bytes. The model's template is added.
    """
    schema = request.response_format and request.response_format.json_schema
    # Half of a surrogate pair has no encoding; a replaced one has as many bytes as what the server gets for it.
    texts = sum(len(text.encode(errors="replace")) for text in _list_texts(request))
    texts += len(json.dumps(schema)) if schema else 0
    frame = TOKENS_OF_A_TEMPLATE + 2 * TOKENS_PER_MESSAGE * (len(request.messages) + len(request.tools))
    return texts + frame + sum(map(_estimate_attachment_tokens, request.attachments))


def _estimate_attachment_tokens(attachment: Attachment) -> int:
    return TOKENS_PER_IMAGE if attachment.is_image else len(attachment.data) // FILE_BYTES_PER_TOKEN


def compute_min_prompt_tokens(request: LLMRequest) -> int:
    """Return a lower bound on the messages' tokens. Constant time, however long they are."""
    return sum(len(message.content) for message in request.messages) // MOST_CHARS_PER_TOKEN


def count_words(request: LLMRequest) -> int:
    """Count the words of the messages: no tokenizer joins two of them, so this is a lower bound on their tokens."""
    return sum(len(message.content.split()) for message in request.messages)


_REPEATED = re.compile(r"(.)\1{2,}", re.DOTALL)


def surely_exceeds(request: LLMRequest, window: int) -> bool:
    """Return whether no tokenizer fits the messages into `window` tokens.

    A run of one character counts as a single one.
    """
    if compute_min_prompt_tokens(request) <= window:
        return False
    chars = sum(len(_REPEATED.sub(r"\1", message.content)) for message in request.messages)
    return chars // MOST_CHARS_PER_TOKEN > window
