"""Characters that come in two events, as two escapes of JSON: half of one can be neither printed nor stored."""

from __future__ import annotations

from llmkit.canonical_json import has_lone_surrogate
from llmkit.ports import StreamPiece

__all__ = ["SplitCharacters"]


class SplitCharacters:
    """Joins the halves of characters across the pieces of one answer."""

    def __init__(self) -> None:
        self._halves: dict[tuple[str, int], str] = {}

    def join(self, pieces: list[StreamPiece]) -> list[StreamPiece]:
        """Return the pieces without halves: the first half waits for the second, and one without is replaced."""
        if not self._halves and all(piece.text.isascii() for piece in pieces):
            return pieces  # nearly always, and checked at the cost of a few nanoseconds
        joined = [self._join_piece(piece) for piece in pieces]
        return [piece for piece in joined if piece.text or piece.tool_id or piece.tool_name]

    def _join_piece(self, piece: StreamPiece) -> StreamPiece:
        key = piece.kind, piece.tool_index
        text = self._halves.pop(key, "") + piece.text
        if "\ud800" <= text[-1:] <= "\udbff":
            self._halves[key], text = text[-1], text[:-1]
        if has_lone_surrogate(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return piece if text == piece.text else piece._replace(text=text)
