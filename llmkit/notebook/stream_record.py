"""Record of what the reader of a stream has read, and of what a loop over it yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from llmkit.notebook.piece_feed import AnswerPieces
from llmkit.notebook.stream_call import StreamedCall
from llmkit.ports import StreamPiece

if TYPE_CHECKING:
    from llmkit.pydanticai import Extraction
    from llmkit.pydanticai.partial_value import PartialReader

__all__ = ["ChatRecord", "ValueRecord"]

T = TypeVar("T")


class CharacterJoiner:
    """Joins the halves of a character (a surrogate pair in JSON) that a server sent in two pieces."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str) -> str:
        """Return the text, after the half that was kept back and without another one at its end."""
        if not self._half and text.isascii():
            return text
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _replace_halves(text[: len(text) - len(self._half)])

    def finish(self) -> str:
        """Return what stands for a half that remained alone."""
        half, self._half = self._half, ""
        return _replace_halves(half)


def _replace_halves(text: str) -> str:
    # As the service does with a complete text, so that the pieces add up to the text of the response.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ChatRecord:
    """Text and thinking of one answer."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {"text": [], "thinking": []}
        self._joiners = {"text": CharacterJoiner(), "thinking": CharacterJoiner()}

    @property
    def text(self) -> str:
        """The text so far."""
        return self._join("text")

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        return self._join("thinking")

    def add_text(self, arrived: Sequence[AnswerPieces] | None) -> list[str]:
        """Keep what has arrived, and return the text in it as one string; [] for none."""
        text = "".join([piece.text for piece in self.add_pieces(arrived) if piece.kind == "text"])
        return [text] if text else []

    def add_pieces(self, arrived: Sequence[AnswerPieces] | None) -> list[StreamPiece]:
        """Keep what has arrived, None for the end, and return it with whole characters."""
        if arrived is None:
            return self._flush()
        pieces = [self._mend(piece) for each in arrived for piece in each.pieces]
        for piece in pieces:
            if piece.kind != "tool_call":
                self._parts[piece.kind].append(piece.text)
        return pieces

    def _mend(self, piece: StreamPiece) -> StreamPiece:
        if piece.kind == "tool_call":  # JSON, which may be joined only as a whole
            return piece
        text = self._joiners[piece.kind].add(piece.text)
        return piece if text is piece.text else piece._replace(text=text)

    def _flush(self) -> list[StreamPiece]:
        kinds: tuple[Literal["thinking"], Literal["text"]] = ("thinking", "text")
        rest = [StreamPiece(kind, self._joiners[kind].finish()) for kind in kinds]
        for piece in rest:
            self._parts[piece.kind].append(piece.text)
        return [piece for piece in rest if piece.text]

    def _join(self, kind: str) -> str:
        # Kept joined, so that asking again and again takes time in proportion to what is new.
        parts = self._parts[kind]
        parts[:] = ["".join(parts)]
        return parts[0]


class ValueRecord(Generic[T]):
    """Fields of the latest answer of a typed call."""

    def __init__(self, call: StreamedCall[Extraction[T]], output_type: type[T]) -> None:
        self._call = call
        self._output_type = output_type
        self._reader: PartialReader | None = None
        self._answer = -1
        self._calls_tool = False
        self._latest: tuple[Any, ...] = ()

    @property
    def written(self) -> str:
        """The object so far as JSON; empty before the first."""
        from pydantic_core import to_json

        return "".join(to_json(each, indent=2, fallback=repr).decode() for each in self._latest)

    def add_values(self, arrived: Sequence[AnswerPieces] | None) -> list[T]:
        """Return the object so far if it has changed, as a list; at the end the validated one."""
        if arrived is None:
            self._latest = (self._call.read_result().value,)
            return [*self._latest]
        from llmkit.pydanticai.partial_value import ABSENT

        latest: Any = ABSENT
        for answer in arrived:
            if answer.number != self._answer:
                self._answer, self._calls_tool, self._reader = answer.number, False, None
                latest = ABSENT
            value = self._read(answer.pieces)
            latest = latest if value is ABSENT else value
        if latest is ABSENT:
            return []
        self._latest = (latest,)
        return [latest]

    def _read(self, pieces: Sequence[StreamPiece]) -> Any:
        from llmkit.pydanticai.output_shape import OutputShape
        from llmkit.pydanticai.partial_value import PartialReader

        if not self._calls_tool and any(piece.kind == "tool_call" for piece in pieces):
            self._calls_tool, self._reader = True, None  # the value is in the arguments, whatever text came before
        if self._reader is None:
            self._reader = PartialReader(OutputShape.of(self._output_type))
        wanted = "tool_call" if self._calls_tool else "text"
        return self._reader.add("".join([each.text for each in pieces if each.kind == wanted and not each.tool_index]))
