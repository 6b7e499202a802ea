"""Drop what a test will ask: documents that share a run of words with an evaluation, by Together's HELM protocol.

    1. A task of which an instance shares 10 words in a row with an evaluation text is dropped whole.
    2. Then every other instance that does is dropped alone.

An n-gram here is `num_words` words in a row, lower-cased, without punctuation; how Together split words was not
published, so that is our choice, and a Chinese or Japanese character is a word. The published search looked at the 100
instances nearest to each evaluation text by embedding; this one looks at all of them, which finds whatever that found.
Whether instance and evaluation "belong to the same task" or only quote the same article was a person's judgement there:
here `keep_tasks` names the tasks that were judged to.

Cost: a training word is looked up in the evaluation's vocabulary, and only where `num_words` known words follow one
another are they hashed (64 bits) and looked up. A hit is compared word by word, so no document is dropped by a
collision. About 20 million characters a second and core, and some 26 bytes of memory an evaluation n-gram.

Reference: model card of togethercomputer/RedPajama-Data-Instruct. It removed 137 of 1,069 tasks there, and 5.2 of 93.3
million instances.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat

import numpy as np

from datamodules.corpora.base import Corpus, Document, Quarantine, shards_of

WORD_BYTES = bytes(byte if byte >= 128 or chr(byte).isalnum() else ord(" ") for byte in range(256))
NO_WORD = re.compile(r"[\W_]+")  # beyond ASCII, where the table above knows nothing
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
WHITE_SPACE = re.compile(r"\s")
CHUNK_CHARACTERS = 1 << 20
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Decontamination:
    """Documents that share text with an evaluation.

    Args:
        against: The evaluation's texts; those with fewer than `num_words` words match nothing.
        num_words: How many words in a row are too many.
        drop_tasks: Drop a task whole where one of its documents overlaps. Needs the corpus's `task_field`, and reads
            the corpus once more.
        keep_tasks: Tasks that are not dropped whole: looked at, and found to share a source with an evaluation but no
            question. Their overlapping documents are dropped all the same.
    """

    against: Corpus
    num_words: int = 10
    drop_tasks: bool = False
    keep_tasks: Sequence[str] = ()
    tasks: frozenset[str] | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.num_words, bool) or not isinstance(self.num_words, int) or self.num_words < 1:
            raise ValueError(
                f"num_words={self.num_words} must be a whole number of at least 1; set"
                " corpus.sources.*.filters.decontaminate.num_words"
            )

    @cached_property
    def index(self) -> NgramIndex:
        """The evaluation's n-grams; pickled along once it is there."""
        with _own_key():
            shards = shards_of(self.against)
            texts = (readable_of(document) for shard in shards for document in shard.documents(Quarantine(strict=True)))
            index = NgramIndex(texts, num_words=self.num_words)
        if len(index) == 0:
            raise ValueError(
                f"no text of filters.decontaminate.against has {self.num_words} words, so nothing would ever be"
                " dropped; check its path and text_field"
            )
        return index

    @property
    def reason(self) -> str:
        """Why a document is dropped, as it is counted."""
        return f"shares {self.num_words} words in a row with an evaluation text"

    def ready_for(self, corpus: Corpus) -> Decontamination:
        """With its index, and the tasks of the corpus that are dropped whole."""
        ready = copy.copy(self)
        _ = ready.index
        if self.drop_tasks:
            object.__setattr__(ready, "tasks", overlapping_tasks(corpus, ready.index) - set(self.keep_tasks))
            logging.getLogger(__name__).info("tasks dropped whole: %s", ", ".join(sorted(ready.tasks or ())) or "none")
        return ready

    def reason_to_drop(self, document: str | Document) -> str | None:
        """Why a document is dropped; None keeps it."""
        text, task = (document, None) if isinstance(document, str) else (document.text, task_of(document))
        if self.drop_tasks:
            if self.tasks is None or task is None:
                raise RuntimeError("drop_tasks needs ready_filters(corpus) first, and documents that know their task")
            if task in self.tasks:
                return f"of a task that {self.reason}"
        return self.reason if self.index.overlap(text) is not None else None

    def fingerprint(self) -> str:
        """Changes with what is dropped."""
        with _own_key():
            own = [self.against.fingerprint(), self.num_words, self.drop_tasks, sorted(self.keep_tasks)]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()


@contextmanager
def _own_key() -> Iterator[None]:
    """Errors of the evaluation's corpus, with the place of its keys."""
    try:
        yield
    except ValueError as error:
        key = "corpus.sources.*.filters.decontaminate.against"
        raise ValueError(str(error).replace("corpus.sources.*", key)) from error


def task_of(document: Document) -> str | None:
    """The task of a record; None where the corpus has none."""
    return getattr(document, "task", None)


def readable_of(document: Document) -> str:
    """The words of a document, without the form that a conversation is kept in."""
    return getattr(document, "readable", None) or document.text


def overlapping_tasks(corpus: Corpus, index: NgramIndex) -> frozenset[str]:
    """The tasks of which a document shares an n-gram with the evaluation; one pass, which stops at none of its rows."""
    found: set[str] = set()
    for shard in shards_of(corpus):
        for document in shard.documents(Quarantine(strict=False)):  # the second pass reports its rows
            task = task_of(document)
            if task is None:
                raise ValueError("drop_tasks=true, but the corpus names no tasks; set corpus.sources.*.task_field")
            if task not in found and index.overlap(readable_of(document)) is not None:
                found.add(task)
    return frozenset(found)


class NgramIndex:
    """All runs of `num_words` words in some texts.

        texts       "To be, or not"   "to be or that"
        words        to be or not      to be or that        num_words 3
        stream       1  2  3  4   0    1  2  3  5   0       ids of words; 0 parts the texts
        n-grams      123 234           123 235              hashed, sorted, each different one once

    Args:
        texts: Texts.
        num_words: Words of an n-gram.
    """

    def __init__(self, texts: Iterable[str], *, num_words: int) -> None:
        self.num_words = num_words
        self._vocabulary: dict[bytes, int] = {}
        streams = [np.zeros(1, dtype=np.uint32)]
        for text in texts:
            for words in word_chunks(text):
                ids = (self._vocabulary.setdefault(word, len(self._vocabulary) + 1) for word in words)
                streams.append(np.fromiter(ids, dtype=np.uint32, count=len(words)))
            streams.append(np.zeros(1, dtype=np.uint32))
        self._stream = np.concatenate(streams)  # [num_words_of_all_texts] uint32
        starts = self._complete(self._stream)
        hashes = self._hashes(self._stream)[starts]
        order = np.argsort(hashes, kind="stable")
        self._hashed, self._starts = self._different(hashes[order], starts[order])
        self._shift = np.uint64(64 - max(4, (4 * len(self._hashed)).bit_length()))
        self._beginnings = np.zeros(1 << (64 - int(self._shift)), dtype=bool)  # of hashes: most others end here
        self._beginnings[self._hashed >> self._shift] = True

    def __len__(self) -> int:
        return len(self._hashed)

    def overlap(self, text: str) -> str | None:
        """The first run of words that is in the texts too; None where there is none."""
        before: list[bytes] = []  # the last words of the chunk before
        for chunk in word_chunks(text):
            words = before + chunk
            ids = np.fromiter(map(self._vocabulary.get, words, repeat(0)), dtype=np.uint32, count=len(words))
            start = self._first_hit(ids)
            if start is not None:
                return b" ".join(words[start : start + self.num_words]).decode("utf-8", "replace")
            before = words[max(0, len(words) - self.num_words + 1) :]
        return None

    def _first_hit(self, ids: np.ndarray) -> int | None:
        candidates = self._complete(ids)
        if not len(candidates) or not len(self._hashed):
            return None
        hashes = self._hashes(ids)[candidates]
        likely = self._beginnings[hashes >> self._shift]
        candidates, hashes = candidates[likely], hashes[likely]
        places = np.minimum(np.searchsorted(self._hashed, hashes), len(self._hashed) - 1)
        for k in np.flatnonzero(self._hashed[places] == hashes):
            start, place = int(candidates[k]), int(places[k])
            words = ids[start : start + self.num_words]
            while place < len(self._hashed) and self._hashed[place] == hashes[k]:  # two n-grams may share a hash
                entry = self._starts[place]
                if np.array_equal(words, self._stream[entry : entry + self.num_words]):
                    return start
                place += 1
        return None

    def _complete(self, ids: np.ndarray) -> np.ndarray:
        """Where `num_words` known words begin, [M] int64."""
        if len(ids) < self.num_words:
            return np.zeros(0, dtype=np.int64)
        unknown = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ids == 0)])
        return np.flatnonzero(unknown[self.num_words :] == unknown[: -self.num_words])

    def _hashes(self, ids: np.ndarray) -> np.ndarray:
        """Of the n-grams at every place, [len(ids) - num_words + 1] uint64."""
        mixed = _mixed(ids.astype(np.uint64))
        count = max(0, len(ids) - self.num_words + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for k in range(self.num_words):
            hashes *= MULTIPLIER
            hashes += mixed[k : k + count]
        return _mixed(hashes)

    def _different(self, hashes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Without n-grams that are the same as the first with their hash."""
        if not len(hashes):
            return hashes, starts
        new = np.concatenate([[True], hashes[1:] != hashes[:-1]])
        first = starts[np.maximum.accumulate(np.where(new, np.arange(len(starts)), 0))]
        keep = new
        for k in range(self.num_words):
            keep = keep | (self._stream[starts + k] != self._stream[first + k])
        return hashes[keep], starts[keep]


def word_chunks(text: str) -> Iterator[list[bytes]]:
    """The lower-cased words of a text, some hundred thousand at a time."""
    start = 0
    while start < len(text):
        end = start + CHUNK_CHARACTERS
        if end < len(text):  # between words, if there is such a place within reach
            space = WHITE_SPACE.search(text, end, end + CHUNK_CHARACTERS)
            end = space.start() if space else end + CHUNK_CHARACTERS
        yield _words(text[start:end])
        start = end


def _words(text: str) -> list[bytes]:
    text = text.lower()
    if not text.isascii():
        text = CJK.sub(r" \g<0> ", NO_WORD.sub(" ", text))
    return text.encode("utf-8", "surrogatepass").translate(WORD_BYTES).split()


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer, which spreads small numbers over 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
