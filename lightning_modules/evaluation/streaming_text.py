"""Text of an answer while it grows: whole characters only, and nothing of a stop string.

A character can take several tokens, and a token's text can depend on the one before it; so a piece is what a few more
tokens add to the text of a few, held back while it ends in half a character. Cost: two decodings of a few tokens a
token. The alternative, decoding the whole answer each time, costs the square of its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class StreamingText:
    """Token ids in, pieces of text out.

    A stop string ends the text where it begins, and counts once the text has something else than blanks: base models
    often answer on the next line. What may become a stop string is held back until that is decided.

    Args:
        decode: From token ids to text.
        stop_strings: Where the text ends.
        on_text: Called with each piece; the pieces joined are `text`.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        stop_strings: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        if "" in stop_strings:
            raise ValueError("a stop string is empty, which every text contains; take it out of stop_strings")
        self.text = ""
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._on_text = on_text
        self._ids: list[int] = []
        self._first, self._read = 0, 0  # ids[first:read] have been decoded and give the next ones their context
        self._held = ""

    def add(self, token_id: int) -> bool:
        """Take one more token; True if a stop string is complete."""
        self._ids.append(token_id)
        piece = self._new_text()
        if piece.endswith(UNFINISHED):
            return False
        self._first, self._read = self._read, len(self._ids)
        return self._take(piece)

    def finish(self) -> None:
        """Give out what was held back."""
        piece = self._new_text()
        self._first = self._read = len(self._ids)
        if not self._take(piece):
            self._emit(len(self._held))

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._first : self._read])
        return self._decode(self._ids[self._first :])[len(before) :]

    def _take(self, piece: str) -> bool:
        self._held += piece
        skipped = len(self._held) - len(self._held.lstrip()) if not self.text.strip() else 0
        places = [place for stop in self._stop_strings if (place := self._held.find(stop, skipped)) >= 0]
        if places:
            self._held = self._held[: min(places)]
            self._emit(len(self._held))
            return True
        undecided = max((overlap(self._held[skipped:], stop) for stop in self._stop_strings), default=0)
        self._emit(len(self._held) - undecided)
        return False

    def _emit(self, num_characters: int) -> None:
        piece, self._held = self._held[:num_characters], self._held[num_characters:]
        self.text += piece
        if piece and self._on_text is not None:
            self._on_text(piece)


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string that may still come."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
