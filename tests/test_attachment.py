"""Images and documents as values: what is taken, what is refused, what is hashed and shown, and where they may go."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmkit.attachment import MAX_ATTACHED_BYTES, Attachment, collect_attachments
from llmkit.calls.request_hash import prompt_sha256
from llmkit.errors import LLMNoRoute, LLMUnavailable, LLMUnsupported
from llmkit.providers import PROVIDERS, compute_min_prompt_tokens, estimate_prompt_tokens
from llmkit.providers.ollama import choose_context_window
from llmkit.redaction import request_preview
from llmkit.router import PROVIDER_CAPABILITIES, LLMRouter
from llmkit.settings import load_settings
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest, Message, RoutePlan
from tests.support.images import JPEG, PDF, WEBP, png

KINDS = {"image/png": png(), "image/jpeg": JPEG, "image/webp": WEBP, "application/pdf": PDF}
PNG = Attachment.of(png())


def looking(*attachments: Attachment, text: str = "What is this?", **fields: Any) -> LLMRequest:
    return LLMRequest(messages=(Message(role="user", content=text, attachments=attachments),), **fields)


# --- the value ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", KINDS)
def test_a_path_bytes_and_a_buffer_give_the_same_attachment(media_type: str, tmp_path: Path) -> None:
    data = KINDS[media_type]
    file = tmp_path / "wrong_name.txt"
    file.write_bytes(data)
    made = [Attachment.of(source) for source in (file, str(file), data, bytearray(data), memoryview(data))]
    assert set(made) == {Attachment(media_type=media_type, data=data)}
    assert Attachment.of(made[0]) is made[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"GIF89a...", "PNG, JPEG and WebP images, and PDF can"),
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(MAX_ATTACHED_BYTES), "15.0 MB in all; scale it down"),
        ("https://example.com/a.png", "fetches nothing from an address"),
        ("data:image/png;base64,AAAA", "fetches nothing from an address"),
        (5, "a path, bytes or an Attachment; got int"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_what_to_do(source: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        Attachment.of(source)


def test_a_file_is_named_in_its_error_and_a_huge_one_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "film.png"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"film\.png cannot be attached: it has 1099511\.6 MB"):
        Attachment.of(huge)
    with pytest.raises(FileNotFoundError):
        Attachment.of(tmp_path / "missing.png")


def test_mislabelled_bytes_are_refused() -> None:
    """Bytes that are not of the kind of their name are refused, and the error does not show them."""
    with pytest.raises(ValidationError, match="no image/jpeg, but image/png") as caught:
        Attachment(media_type="image/jpeg", data=png())
    assert "IHDR" not in str(caught.value)


def test_an_attachment_is_immutable_and_shows_no_bytes() -> None:
    with pytest.raises(ValidationError):
        PNG.data = b""
    shown = f"[image/png 69 B sha256:{PNG.sha256[:7]}…]"
    assert repr(PNG) == str(PNG) == shown
    assert repr(looking(PNG).messages[0]).count("IHDR") == 0


@given(st.binary(max_size=200))
def test_an_attachment_survives_json(tail: bytes) -> None:
    message = looking(Attachment.of(b"\xff\xd8\xff" + tail)).messages[0]
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_several_and_single_ones_and_each_in_its_place() -> None:
    assert collect_attachments(images=png(), files=[PDF]) == (PNG, Attachment.of(PDF))
    with pytest.raises(ValueError, match=r"application/pdf 69 B .* belongs in files="):
        collect_attachments(images=[PDF])
    with pytest.raises(ValueError, match=r"image/png 69 B .* belongs in images="):
        collect_attachments(images=[png()], files=[png()])


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_a_user_message_carries_attachments(role: Any) -> None:
    with pytest.raises(ValidationError, match="only a user message"):
        Message(role=role, content="x", attachments=(PNG,))


def test_the_attachments_of_all_messages_together_are_limited() -> None:
    half = Attachment.of(b"\xff\xd8\xff" + bytes(MAX_ATTACHED_BYTES // 2))
    messages = [Message(role="user", content="x", attachments=(half,))] * 2
    assert LLMRequest(messages=messages[:1]).attachments == (half,)
    with pytest.raises(ValidationError, match=r"have 15\.0 MB, and may have 15 MB"):
        LLMRequest(messages=messages)


# --- hash, preview, size ------------------------------------------------------------------------------------------


def test_attachment_hash_is_golden() -> None:
    """The hash with an attachment has a golden value, and without one it is that of earlier versions."""
    jpeg = hashlib.sha256(JPEG).hexdigest()
    canonical = (
        f'{{"form":"llmkit-request-1","messages":[{{"attachments":[{{"media_type":"image/jpeg","sha256":"{jpeg}"}}],'
        '"content":"What is this?","role":"user"}],"profile":"fast","route":"ollama/llava"}'
    )
    golden = "9ed62a3cb5af234049339643e50be86d2ae696f0f2f2fa297db88512508b6554"
    assert hashlib.sha256(canonical.encode()).hexdigest() == golden
    assert prompt_sha256(looking(Attachment.of(JPEG), route="ollama/llava", profile="fast")) == golden
    # The value of a request without any is in test_values.
    assert prompt_sha256(looking(route="ollama/x")) == prompt_sha256(
        LLMRequest(messages="What is this?", route="ollama/x")
    )


IMAGES = st.lists(st.sampled_from([PNG, Attachment.of(png(7)), Attachment.of(JPEG), Attachment.of(PDF)]), max_size=3)


@pytest.mark.slow
@given(IMAGES, IMAGES)
def test_the_hash_changes_exactly_when_the_attachments_do(one: list[Attachment], two: list[Attachment]) -> None:
    assert (prompt_sha256(looking(*one)) == prompt_sha256(looking(*two))) == (one == two)


def test_a_preview_tells_kind_size_and_hash_and_never_the_bytes() -> None:
    big = Attachment.of(png() + bytes(12_000))
    shown = request_preview(looking(big, Attachment.of(PDF), text="What?" + "x" * 5_000))
    assert shown.startswith(f"user: [image/png 12 kB sha256:{big.sha256[:7]}…] [application/pdf 69 B sha256:")
    assert "] What?x" in shown
    assert base64.b64encode(png())[:12].decode() not in shown


def test_room_is_made_for_images_and_documents() -> None:
    text = estimate_prompt_tokens(looking())
    assert estimate_prompt_tokens(looking(PNG, PNG)) == text + 6_000
    assert estimate_prompt_tokens(looking(Attachment.of(PDF + bytes(20_000)))) == text + 1_003
    assert compute_min_prompt_tokens(looking(PNG)) == compute_min_prompt_tokens(looking())
    assert (choose_context_window(looking()), choose_context_window(looking(PNG, PNG))) == (4_096, 8_192)


# --- the router ---------------------------------------------------------------------------------------------------


def router() -> LLMRouter:
    local = replace(PROVIDERS[LLMProvider.LOCAL], configuration_problem=lambda _settings: None)
    settings = load_settings(gemini_api_key="k")
    return LLMRouter(settings, ScriptedClient(), {**PROVIDERS, LLMProvider.LOCAL: local})


def reasons(plan: RoutePlan) -> dict[str, str]:
    return {str(entry.route.provider): entry.excluded_because for entry in plan.entries if entry.excluded_because}


def test_what_each_provider_reads_is_declared() -> None:
    declared = {str(name): (caps.supports_images, caps.supports_files) for name, caps in PROVIDER_CAPABILITIES.items()}
    readers = dict.fromkeys(["gemini", "openai", "anthropic"], (True, True))
    assert declared == {"ollama": (False, False), "local": (False, False), **readers}


@pytest.mark.parametrize(
    ("data", "ollama", "local"),
    [
        (png(), "whether it can see images depends on the model; pin it to try", "it cannot see images"),
        (PDF, "it cannot read documents", "it cannot read documents"),
    ],
)
def test_what_is_attached_goes_to_gemini_and_the_plan_says_why(data: bytes, ollama: str, local: str) -> None:
    plan = router().explain(looking(Attachment.of(data), profile="fast"))
    assert [str(route.provider) for route in plan.candidates] == ["gemini"]
    assert reasons(plan) == {"ollama": ollama, "local": local}


@pytest.mark.parametrize(
    ("route", "data", "said"),
    [
        ("ollama/llava", png(), None),
        ("ollama/llava", JPEG, None),
        ("ollama/llava", WEBP, "it cannot read image/webp; convert it to PNG or JPEG"),
        ("ollama/llava", PDF, "it cannot read documents"),
        ("gemini/gemini-2.5-flash", WEBP, None),
        ("gemini/gemini-2.5-flash", PDF, None),
        ("local/gemma-3-270m", png(), "it cannot see images"),
        ("local/gemma-3-270m", PDF, "it cannot read documents"),
    ],
)
def test_pinned_route_refuses_unreadable_files(route: str, data: bytes, said: str | None) -> None:
    """It accepts the others; the error names the file."""
    request = looking(Attachment.of(data), route=route)
    plan = router().explain(request)
    assert [entry.excluded_because for entry in plan.entries] == [said]
    if said is not None:
        with pytest.raises(LLMUnsupported, match=f"{route} cannot take this request: {said}"):
            router().select_provider(request)


async def test_local_only_image_is_not_sent() -> None:
    """An image that must stay on this machine is not sent if no local model reads it; the error gives the reason."""
    with pytest.raises(LLMNoRoute, match="whether it can see images depends on the model") as caught:
        await router().execute(looking(PNG, constraints=LLMConstraints(local_only=True)))
    assert "local_only, and gemini answers at" in str(caught.value)


async def test_an_image_never_falls_back_to_a_route_without_eyes() -> None:
    client = ScriptedClient([LLMUnavailable("down")])
    own = LLMRouter(load_settings(gemini_api_key="k"), client)
    with pytest.raises(LLMUnavailable, match="down"):
        await own.execute(looking(PNG))
    assert [str(route.provider) for route, _ in client.calls] == ["gemini"]
