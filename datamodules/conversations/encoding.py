"""Rendered conversations to token ids and the mask of their labels.

    pieces   [<|im_start|>] "assistant\\n" | "It is 5." [<|im_end|>] "\\n"
    runs     [<|im_start|>] "assistant\\nIt is 5." [<|im_end|>] "\\n"          texts between control tokens, joined
    tokens   <|im_start|>  assist ant \\n  It  Ġis  Ġ5  .  <|im_end|>  \\n
    labels                                 ^^  ^^^  ^^  ^  ^^^^^^^^^^

The tokenizer says which characters each token stands for, and a token is a label where one of its characters is: no
string is looked for among tokens. Runs are encoded by a copy of the tokenizer that knows no control tokens, so none
can come out of what people wrote; what does not hold of a tokenizer is found out row by row, and the row refused.

A text that the tokenizer has to read whole, as its own template's, is given to it whole, so that the ids are those of
`apply_chat_template`; where a content holds the name of a control token, it is read in runs, after the same row
without those names gave the same ids in both ways.

Cost: that of the tokenizer, in calls of many texts. Long texts are cut where that changes nothing
(`prepare/cutting.py`); characters are only counted in pieces that hold both labels and others.
"""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.conversations.template import BoundTemplate, Piece, Rendered
from datamodules.prepare.cutting import CutRule, cut_rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = list[tuple[int, int]]


class Encoded(NamedTuple):
    """The tokens of a rendered conversation."""

    ids: np.ndarray  # [T] uint32
    mask: np.ndarray  # [T] bool, where the token is a label

    @property
    def has_label(self) -> bool:
        """Whether there is something to learn: the first token is never predicted."""
        return bool(self.mask[1:].any())


class _Run(NamedTuple):
    """A text that a tokenizer reads in one go, or one token."""

    text: str
    labels: Spans  # of the text's characters
    reader: str = ""
    token: int | None = None


@dataclass(frozen=True)
class _Reader:
    """A copy of the tokenizer, and where its texts may be cut."""

    backend: Any
    rule: CutRule | None

    def spans(self, text: str) -> Spans:
        return self.rule.spans(text) if self.rule else [(0, len(text))]


class PieceEncoder:
    """Encodes what a template rendered.

    Args:
        tokenizer: Of transformers, with a backend of the tokenizers library.
        template: Bound to the same tokenizer.

    Raises:
        ValueError: The tokenizer cannot tell the characters of a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: BoundTemplate) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} cannot tell which characters a token stands for, which the"
                " labels of conversations need; set model.tokenizer to one with a tokenizer.json"
            )
        self.template = template
        description = json.loads(backend.to_str())
        self._ids = _without_unknown(template.control_tokens, description)
        self._is_control = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
        self._is_control[list(self._ids.values())] = True
        self._names = _Names(self._ids)
        self._readers = _Readers(description, set(self._ids))
        self._strips = {token["content"]: (token["lstrip"], token["rstrip"]) for token in description["added_tokens"]}

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded | str]:
        """Ids and mask of each, or why there are none."""
        named = [self._names.holds(one) for one in rendered]
        ways = [self._in_runs(one) if one.whole and names else one for one, names in zip(rendered, named, strict=True)]
        found: list[Encoded | str] = []
        for one, way, encoded in zip(rendered, ways, self._encode(ways), strict=True):
            found.append(self._checked(one, way, encoded))
        return found

    def _checked(self, rendered: Rendered, way: Rendered, encoded: Encoded) -> Encoded | str:
        expected = sum(piece.token is not None for piece in way.pieces)
        if way.whole:
            expected = sum(self._names.count(piece.text) for piece in way.pieces if not piece.content)
        elif rendered.whole and not self._agrees(rendered):
            return "what was said holds the name of a control token, which this tokenizer cannot keep from becoming one"
        written = sum(1 for piece in way.pieces if piece.token is not None and not self._is_control[piece.token])
        if int(self._is_control[encoded.ids].sum()) != expected - written:
            return "what was said would become a control token of the tokenizer"
        return encoded

    def characters(self, text: str) -> np.ndarray:
        """The characters that each token of a text stands for, [num_tokens, 2] int64, first and behind the last."""
        reader = self._readers["first"]
        spans = reader.spans(text)
        encodings = reader.backend.encode_batch([text[a:b] for a, b in spans], add_special_tokens=False)
        found = [_offsets(encoding) + start for encoding, (start, _) in zip(encodings, spans, strict=True)]
        return np.concatenate(found)

    def num_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text alone."""
        reader = self._readers["first"]
        spans = [reader.spans(text) for text in texts]
        pieces = [text[a:b] for text, own in zip(texts, spans, strict=True) for a, b in own]
        sizes = iter(map(len, reader.backend.encode_batch_fast(pieces, add_special_tokens=False)))
        return [sum(next(sizes) for _ in own) for own in spans]

    def _agrees(self, rendered: Rendered) -> bool:
        """Whether reading in runs gives the tokenizer's own ids of this row, were there no names in its contents."""
        pieces = [
            piece._replace(text=self._names.blanked(piece.text)) if piece.content else piece
            for piece in rendered.pieces
        ]
        whole = Rendered(pieces, whole=True)
        one, other = self._encode([whole, self._in_runs(whole)])
        return np.array_equal(one.ids, other.ids) and np.array_equal(one.mask, other.mask)

    def _in_runs(self, rendered: Rendered) -> Rendered:
        """The template's control tokens as ids instead of as text."""
        pieces: list[Piece] = []
        for piece in rendered.pieces:
            pieces += [piece] if piece.content else self._names.split(piece, self._ids)
        for k, piece in enumerate(pieces):
            if piece.token is None or piece.text not in self._strips:
                continue
            left, right = self._strips[piece.text]  # the token takes white space beside it away
            if left and k and pieces[k - 1].token is None:
                pieces[k - 1] = pieces[k - 1]._replace(text=pieces[k - 1].text.rstrip())
            if right and k + 1 < len(pieces) and pieces[k + 1].token is None:
                pieces[k + 1] = pieces[k + 1]._replace(text=pieces[k + 1].text.lstrip())
        bare = [piece._replace(text="") if piece.token is not None else piece for piece in pieces]
        return Rendered(bare, starts_behind_tokens=False)

    def _encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        runs = [list(self._runs(one)) for one in rendered]
        made = iter(self._read([run for one in runs for run in one]))
        found = []
        for one in runs:
            parts = [next(made) for _ in one]
            ids = np.concatenate([ids for ids, _ in parts]) if parts else np.empty(0, dtype=np.uint32)
            mask = np.concatenate([mask for _, mask in parts]) if parts else np.empty(0, dtype=bool)
            found.append(Encoded(ids, mask))
        return found

    def _runs(self, rendered: Rendered) -> Iterator[_Run]:
        texts: list[str] = []
        labels: Spans = []
        end = 0
        first = True
        for piece in [*rendered.pieces, None]:
            if piece is not None and piece.token is None:
                if piece.label and piece.text:
                    joined = labels and labels[-1][1] == end
                    start = labels.pop()[0] if joined else end
                    labels.append((start, end + len(piece.text)))
                texts.append(piece.text)
                end += len(piece.text)
                continue
            if end:
                inside = not first and not self.template.texts_apart
                reader = "whole" if rendered.whole else "later" if inside else "first"
                yield _Run("".join(texts), labels, reader)
                first = False
            texts, labels, end = [], [], 0
            if piece is not None:
                yield _Run("", [(0, 1)] if piece.label else [], token=piece.token)
                first = first and rendered.starts_behind_tokens and piece.message < 0

    def _read(self, runs: Sequence[_Run]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and mask of each run, from two calls of each reader: with characters and without."""
        cuts = [self._readers[run.reader].spans(run.text) if run.token is None else [] for run in runs]
        parts = [[_clipped(run.labels, *span) for span in spans] for run, spans in zip(runs, cuts, strict=True)]
        texts: dict[tuple[str, bool], list[str]] = {}
        for run, spans, labels in zip(runs, cuts, parts, strict=True):
            for (start, end), inside in zip(spans, labels, strict=True):
                mixed = _is_mixed(inside, end - start)
                texts.setdefault((run.reader, mixed), []).append(run.text[start:end])
        calls = {key: iter(self._call(*key, values)) for key, values in texts.items()}
        for run, spans, labels in zip(runs, cuts, parts, strict=True):
            if run.token is not None:
                yield np.array([run.token], dtype=np.uint32), np.array([bool(run.labels)])
                continue
            ids, masks = [], []
            for (start, end), inside in zip(spans, labels, strict=True):
                mixed = _is_mixed(inside, end - start)
                encoding = next(calls[run.reader, mixed])
                ids.append(np.fromiter(encoding.ids, dtype=np.uint32, count=len(encoding)))
                masks.append(
                    _labels_of(encoding, inside, end - start) if mixed else np.full(len(encoding), bool(inside))
                )
            yield np.concatenate(ids), np.concatenate(masks)

    def _call(self, reader: str, mixed: bool, texts: list[str]) -> list[Any]:
        backend = self._readers[reader].backend
        encode = backend.encode_batch if mixed else backend.encode_batch_fast
        return encode(texts, add_special_tokens=False)


class _Readers:
    """Copies of a tokenizer, made when they are needed: a large vocabulary takes a second.

    Args:
        description: The tokenizer's.
        control: Names of the tokens that only `whole` finds in texts.
    """

    def __init__(self, description: Mapping[str, Any], control: set[str]) -> None:
        self._description, self._control = description, control
        self._made: dict[str, _Reader] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> _Reader:
        """`whole` reads as the tokenizer does, `first` text at the start, `later` text behind a control token."""
        with self._lock:
            if name == "later" and not any(_starts_differ(part) for part in _flat(self._description["pre_tokenizer"])):
                name = "first"
            if name not in self._made:
                without = None if name == "whole" else self._control
                self._made[name] = _reader(self._description, without=without, inside=name == "later")
            return self._made[name]


class _Names:
    """The names of control tokens, looked for in texts.

    Args:
        control: Their ids by name.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        names = sorted(filter(None, control), key=len, reverse=True)
        self._by_start: dict[str, list[str]] = {}
        for name in names:
            self._by_start.setdefault(name[:2], []).append(name)
        self._any = re.compile("|".join(map(re.escape, names))) if names else None

    def holds(self, rendered: Rendered) -> bool:
        """Whether something that was said holds one; hundreds of names share a few beginnings."""
        return any(self._found(piece.text) for piece in rendered.pieces if piece.content)

    def _found(self, text: str) -> bool:
        starts = (names for start, names in self._by_start.items() if start in text)
        return any(name in text for names in starts for name in names)

    def count(self, text: str) -> int:
        return len(self._any.findall(text)) if self._any else 0

    def blanked(self, text: str) -> str:
        """The text with something harmless in place of every name."""
        return self._any.sub(lambda match: "x" * len(match[0]), text) if self._any else text

    def split(self, piece: Piece, ids: Mapping[str, int]) -> Iterable[Piece]:
        """A text of the template as texts and control tokens, which keep their names for the moment."""
        end = 0
        for match in self._any.finditer(piece.text) if self._any else ():
            if match.start() > end:
                yield piece._replace(text=piece.text[end : match.start()])
            yield piece._replace(text=match[0], token=ids[match[0]])
            end = match.end()
        if end < len(piece.text):
            yield piece._replace(text=piece.text[end:])


def _without_unknown(control: Mapping[str, int], description: Mapping[str, Any]) -> dict[str, int]:
    """Control tokens but the one that stands for unknown characters: it comes out of honest texts."""
    model = description["model"]
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:  # Unigram's vocabulary is a list
        unknown = model["vocab"][model["unk_id"]][0]
    return {name: token for name, token in control.items() if name != unknown}


def _reader(description: Mapping[str, Any], *, without: set[str] | None = None, inside: bool = False) -> _Reader:
    """A copy of a tokenizer.

    Args:
        description: The tokenizer's.
        without: Tokens that it does not find in texts.
        inside: Its texts go on behind a token, where `Metaspace` with `first` puts no space.
    """
    from tokenizers import Tokenizer

    own = json.loads(json.dumps(description))
    # A post-processor would take the spaces in front of words out of the tokens' characters.
    own |= {"truncation": None, "padding": None, "post_processor": None}
    if without is not None:
        for token in own["added_tokens"]:
            token["special"] = token["content"] in without
    if inside:
        for part in _flat(own["pre_tokenizer"]):
            if _starts_differ(part):
                part["prepend_scheme"] = "never"
    backend = Tokenizer.from_str(json.dumps(own))
    if without is not None:
        backend.encode_special_tokens = True
    return _Reader(backend, cut_rule(backend))


def _starts_differ(part: Mapping[str, Any]) -> bool:
    return part.get("prepend_scheme") == "first"


def _flat(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if part is not None:
        yield part
        for child in part.get("pretokenizers", ()):
            yield from _flat(child)


def _clipped(labels: Spans, start: int, end: int) -> Spans:
    """The spans within start..end, counted from start."""
    found = []
    for k in range(bisect_right(labels, start, key=itemgetter(1)), len(labels)):
        if labels[k][0] >= end:
            break
        found.append((max(labels[k][0], start) - start, min(labels[k][1], end) - start))
    return found


def _is_mixed(labels: Spans, size: int) -> bool:
    """Whether some characters are labels and some are not."""
    return bool(labels) and labels != [(0, size)]


def _labels_of(encoding: Any, labels: Spans, size: int) -> np.ndarray:
    """Which tokens stand for a character that is a label, [num_tokens] bool."""
    characters = np.zeros(size + 1, dtype=np.int64)
    for start, end in labels:
        characters[start:end] = 1
    before = np.concatenate([[0], np.cumsum(characters)])  # labels in front of each character
    offsets = _offsets(encoding)
    start, end = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)  # without characters: as the next one
    return before[end] > before[start]


def _offsets(encoding: Any) -> np.ndarray:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
