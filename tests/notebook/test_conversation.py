"""Conversations: memory, rows, reopening and display."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from llmkit import LLMBadRequest, LLMIdempotencyConflict, LLMStoreError, LLMUnavailable, Session
from llmkit.testing import Fault, OllamaModel, OllamaServer, Reply
from tests.support.images import png


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(lambda request: Reply(f"answer {len(request.json['messages'])}")) as server:
        yield server


@pytest.fixture
def session(ollama: OllamaServer) -> Iterator[Session]:
    with Session("study", ollama_api_base=ollama.url, max_retries=0) as opened:
        yield opened


def test_a_turn_sends_all_earlier_turns_and_is_a_row(session: Session, ollama: OllamaServer) -> None:
    talk = session.conversation(system="Be brief.", temperature=0.5)
    assert talk.say("One?").text == "answer 2"
    talk.say("Two?", temperature=0.1)
    sent = [call.json for call in ollama.calls]
    assert [[message["content"] for message in each["messages"]] for each in sent] == [
        ["Be brief.", "One?"],
        ["Be brief.", "One?", "answer 2", "Two?"],
    ]
    assert [each["options"]["temperature"] for each in sent] == [0.5, 0.1]
    runs = session.runs(pipeline_run_id=talk.id)
    assert len(runs) == len(session.runs()) == 2
    assert set(runs["stage"]) == {"conversation"}
    assert str(talk) == "system: Be brief.\nuser: One?\nassistant: answer 2\nuser: Two?\nassistant: answer 4"


def test_a_stored_conversation_can_be_reopened(session: Session, ollama: OllamaServer) -> None:
    talk = session.conversation(system="Be brief.")
    for text in ("One?", "Two <b>é\u2028?"):
        talk.say(text)
    with Session("study", ollama_api_base=ollama.url) as later:
        again = later.conversation(id=talk.id)
        assert again.messages == talk.messages
        assert [turn.answer.text for turn in again.turns] == [turn.answer.text for turn in talk.turns]
        again.say("Three?")
    assert len(ollama.calls[-1].json["messages"]) == 6


def test_images_stay_in_view_and_are_described_after_reopening() -> None:
    eyes = OllamaModel("llama3.2", capabilities=("completion", "vision"))
    with OllamaServer(models=[eyes]) as ollama, Session("study", ollama_api_base=ollama.url) as session:
        talk = session.conversation(images=png())
        talk.say("What is this?")
        talk.say("And this?", images=[png(0)])
        talk.say("And its colour?")
        images = [[len(message.get("images", ())) for message in call.json["messages"]] for call in ollama.calls]
        assert images == [[1], [1, 0, 1], [1, 0, 1, 0, 0]]
        assert "[image/png" in talk._repr_html_()
        again = session.conversation(id=talk.id)
        assert again.messages[0].content.startswith("What is this?\n[image/png")
        again.say("Still there?")
        assert len(ollama.calls) == 4


def test_a_cached_answer_is_part_of_the_conversation(session: Session, ollama: OllamaServer) -> None:
    one, two = session.conversation(), session.conversation()
    one.say("Same?")
    assert two.say("Same?").served_from == "cache"
    assert session.conversation(id=two.id).messages == one.messages
    assert len(ollama.calls) == 1


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(session: Session, ollama: OllamaServer) -> None:
    talk = session.conversation()
    ollama.script([Fault.status(503), "fine"])
    with pytest.raises(LLMUnavailable):
        talk.say("One?", route="ollama/llama3.2")
    assert not talk.turns
    assert talk.say("Another?").text == "fine"
    assert [message.content for message in session.conversation(id=talk.id).messages] == ["Another?", "fine"]


def test_two_processes_cannot_continue_from_the_same_turn(session: Session) -> None:
    talk = session.conversation()
    talk.say("One?")
    other = session.conversation(id=talk.id)
    talk.say("Two?")
    with pytest.raises(LLMIdempotencyConflict, match="reopen the conversation") as caught:
        other.say("Another two?")
    assert str(caught.value.run_id) == str(session.runs(limit=1)["id"].iloc[0])


def test_without_payloads_no_text_is_stored(ollama: OllamaServer) -> None:
    with Session("study", ollama_api_base=ollama.url, store_payloads=False) as session:
        talk = session.conversation(system="sys")
        talk.say("a secret plan")
        assert json.loads(session.runs()["metadata_json"].iloc[0]) == {}
        with pytest.raises(LLMStoreError, match="LLM_STORE_PAYLOADS"):
            session.conversation(id=talk.id)


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_message_is_refused(session: Session, text: object) -> None:
    with pytest.raises(LLMBadRequest):
        session.conversation().say(text)


def test_conversations_of_other_workspaces_are_not_found(session: Session, ollama: OllamaServer) -> None:
    talk = session.conversation()
    talk.say("x")
    with Session("other", ollama_api_base=ollama.url) as other, pytest.raises(LLMBadRequest, match="no conversation"):
        other.conversation(id=talk.id)
    with pytest.raises(LLMBadRequest, match="leave system out"):
        session.conversation(id=talk.id, system="x")


async def test_asay_adds_a_turn(session: Session) -> None:
    talk = session.conversation()
    await asyncio.wait_for(talk.asay("One?"), 60)
    assert len(talk.turns) == 1


def test_a_repr_contains_no_message(session: Session) -> None:
    talk = session.conversation(system="secret")
    talk.say("secret")
    assert "secret" not in repr(talk)
