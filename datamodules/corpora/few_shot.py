r"""Long few-shot documents from the raw records of many tasks, such as Natural Instructions and P3.

    records      {"task_name": "a", "definition": "Add.", "inputs": "1 + 2", "targets": "3"}     one a line
                 {"task_name": "b", "definition": "Spell.", "inputs": "cat", "targets": "c a t"}
                 {"task_name": "a", "definition": "Add.", "inputs": "4 + 4", "targets": "8"}
    seed 3       Add.\n\n4 + 4\n8\n\n1 + 2\n3
                 Spell.\n\ncat\nc a t

Algorithm: the records of a file are grouped by task, each task's are shuffled, and documents are filled in that order;
a new one begins where the next example does not fit, and with every task. So each example is in one document, once.
Cost: one pass, with the examples of one file in memory; and where tokens are counted, tokenising everything once more.
Alternative: records already joined, as Together published them (NI and P3 "materialized"), whose documents end near 8K
to 16K tokens.

The design is our own: the code that joined Together's records was not published (OpenChatKit has none).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datamodules.corpora.base import BadDocument, Document, Quarantine
from datamodules.corpora.decompress import COMPRESSIONS, MAX_COMPRESSION_RATIO
from datamodules.corpora.few_shot_records import KINDS, RecordFields, Task, read_examples
from datamodules.corpora.files import FileCorpus, content_digest
from datamodules.corpora.pieces import Blame, Signature, signature_of, unreadable
from datamodules.corpora.rows import kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Changes with the texts that a seed gives, so that cached tokens are made anew."""

KEPT_FREE = 2
"""Tokens, for what stands around a document: BOS and EOS."""


class TokenizerSource(Protocol):
    """Where a tokenizer comes from, such as `datamodules.tokens.tokenizer.PretrainedTokenizer`."""

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        ...


@dataclass(frozen=True)
class FewShotCorpus:
    r"""Documents of a task's definition and as many of its examples as fit, from JSONL records or NI's task files.

    Args:
        path: A file, a folder, a glob pattern, or a list of these; `.jsonl`, a record a line, or `.json`, a task of
            Natural Instructions each, also `.zst` or `.gz`. A task that stands in several files has documents of its
            own from each.
        max_tokens: Longest document, two tokens being kept free for BOS and EOS; it is longer only where one example,
            with the definition, is. The context length fills rows with a document each.
        tokenizer: Counts the tokens, and is to be the model's: `${model.tokenizer}`. The definition and each example
            are counted alone; joined they may differ by a token where they meet. Null estimates.
        characters_per_token: The estimate without a tokenizer, for example to prepare the same documents for several
            models; about 4 is usual for English. A document that comes out longer than a row is cut by packing as any
            other is, so nothing is lost by an estimate that is a little too high.
        input_field: The field that holds an example's input; P3 has `inputs_pretokenized`. This and the other three
            name the fields of a line; of a list of strings the first is taken.
        target_field: Its target, which must not be empty; P3 has `targets_pretokenized`.
        definition_field: What is to be done; null where records have none.
        task_field: What tells the tasks apart, besides the definition; null where the definition alone does, or where a
            file holds one task.
        example: How an example is written, with {input} and {target} in it.
        separator: Between the definition and the examples.
        seed: Not negative; orders the examples of a task.
        max_quarantined: Largest share of the records that may be set aside, 0..1. At 0 the first stops everything.
        max_compression_ratio: A compressed file that unpacks to more than so many times its size is refused.

    Raises:
        ValueError: A setting is not in its range.
    """

    path: str | list[str]
    max_tokens: int
    tokenizer: TokenizerSource | None = None
    characters_per_token: float = 4.0
    input_field: str = "inputs"
    target_field: str = "targets"
    definition_field: str | None = "definition"
    task_field: str | None = "task_name"
    example: str = "{input}\n{target}"
    separator: str = "\n\n"
    seed: int = 0
    max_quarantined: float = 0.0
    max_compression_ratio: float = MAX_COMPRESSION_RATIO

    def __post_init__(self) -> None:
        if self.max_tokens <= KEPT_FREE or self.seed < 0:
            raise ValueError(
                f"corpus.sources.*.max_tokens={self.max_tokens} must be at least {KEPT_FREE + 1} and"
                f" corpus.sources.*.seed={self.seed} at least 0"
            )
        if not 0 < self.characters_per_token < float("inf"):
            raise ValueError(f"corpus.sources.*.characters_per_token={self.characters_per_token} must be positive")
        if not 0 <= self.max_quarantined <= 1:
            raise ValueError(f"corpus.sources.*.max_quarantined={self.max_quarantined} must be from 0 to 1")
        if self.example.count("{input}") != 1 or self.example.count("{target}") != 1:
            raise ValueError(f"corpus.sources.*.example={self.example!r} must hold {{input}} once and {{target}} once")

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # a tokenizer is loaded where it is

    def files(self) -> list[Path]:
        """The files that `path` names.

        Raises:
            ValueError: Nothing is there, or a file is neither JSONL nor JSON.
        """
        found = FileCorpus(self.path, max_quarantined=self.max_quarantined).files()
        for file in found:
            if kind_of(file) not in KINDS:
                raise ValueError(
                    f"corpus file {file} is no {' or '.join(KINDS)} file, and few-shot records are read from such"
                    " alone; set corpus.sources.*.path"
                )
        return found

    def fingerprint(self) -> str:
        """A string that changes with the files, whatever counts tokens, and every setting that changes documents."""
        ignored = {"path", "tokenizer", "max_quarantined", "max_compression_ratio"}
        ignored |= {"characters_per_token"} if self.tokenizer else set()
        parameters = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ignored}
        if self._tokenizer is not None:
            from datamodules.tokens.tokenise import tokenizer_fingerprint  # which imports corpora

            parameters["tokenizer"] = tokenizer_fingerprint(self._tokenizer)
        digest = hashlib.sha256(f"few-shot {VERSION} {json.dumps(parameters, sort_keys=True)}".encode())
        for file in self.files():
            digest.update(content_digest(file))
            if kind_of(file) == ".json":
                digest.update(file.name.encode())  # the task is called so, and its order follows
        return digest.hexdigest()

    def shards(self) -> list[FewShotShard]:
        """One a file, in order."""
        return [FewShotShard(self, file, signature_of(file)) for file in self.files()]

    def texts(self) -> Iterator[str]:
        """Yield the documents in order.

        Raises:
            ValueError: A file or record cannot be read.
        """
        for shard in self.shards():
            for document in shard.documents(Quarantine()):
                yield document.text

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.tokenizer is None else self.tokenizer.load()

    @cached_property
    def num_tokens(self) -> Callable[[Sequence[str]], list[float]]:
        """Tokens of each of some texts."""
        if self._tokenizer is None:
            return lambda texts: [len(text) / self.characters_per_token for text in texts]
        from datamodules.prepare.encoding import TextEncoder

        encoder = TextEncoder(self._tokenizer)
        return lambda texts: [len(ids) for ids in encoder.encode(texts)]


@dataclass(frozen=True)
class FewShotShard:
    """The few-shot documents of one file."""

    corpus: FewShotCorpus
    file: Path
    signature: Signature  # when the corpus was dealt out

    @property
    def name(self) -> str:
        """The file's."""
        return str(self.file)

    @property
    def num_bytes(self) -> int:
        """Of text, about."""
        return self.signature.size * (4 if self.file.suffix.lower() in COMPRESSIONS else 1)

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents, tasks in the order in which the file has them.

        Raises:
            ValueError: The file cannot be read or holds no example.
        """
        tasks: dict[Task, list[str]] = {}
        quarantined = len(quarantine.rows)
        corpus = self.corpus
        names = RecordFields(corpus.input_field, corpus.target_field, corpus.definition_field, corpus.task_field)
        ratio = corpus.max_compression_ratio
        try:
            for task, source, target in read_examples(self.file, names, quarantine, max_compression_ratio=ratio):
                tasks.setdefault(task, []).append(self._written(source, target))
        except BadDocument:
            raise
        except Exception as error:  # reading raises errors of zlib, zstd and the system
            raise unreadable(error, Blame(f"corpus file {self.file}", "is it complete?")) from error
        if signature_of(self.file) != self.signature:
            raise BadDocument(
                f"corpus file {self.file} changed while it was being read; leave it alone and start again"
            )
        if not tasks and len(quarantine.rows) == quarantined:
            if quarantine.strict:
                raise ValueError(f"corpus file {self.file} holds no examples; remove it from corpus.sources.*.path")
            quarantine.add(str(self.file), "holds no examples")
        for task, examples in tasks.items():
            called = f"{self.file}, task {task.name!r}" if task.name else str(self.file)
            order = _generator(corpus.seed, task).permutation(len(examples))
            shuffled = [examples[i] for i in order.tolist()]
            number = 0
            for number, text in enumerate(self._joined(task.definition, shuffled), 1):
                yield Document(text, f"{called}, document {number}")
            quarantine.num_joined += len(examples) - number

    def _joined(self, definition: str, examples: Sequence[str]) -> Iterator[str]:
        """Documents that are full, or the task's last."""
        corpus, separator = self.corpus, self.corpus.separator
        size, *sizes = corpus.num_tokens([definition or separator, *(separator + example for example in examples)])
        start = size if definition else -size  # then there is no separator in front of the first example
        room = corpus.max_tokens - KEPT_FREE
        parts: list[str] = []
        held = 0.0
        for example, size in zip(examples, sizes, strict=True):
            if parts and held + size > room:
                yield separator.join(parts)
                parts = []
            if not parts:
                parts, held = ([definition] if definition else []), start
            parts.append(example)
            held += size
        yield separator.join(parts)

    def _written(self, source: str, target: str) -> str:
        written = {"{input}": source, "{target}": target}
        pattern = self.corpus.example
        first, second = sorted(written, key=pattern.index)  # not `str.format`: inputs hold braces too
        before, _, rest = pattern.partition(first)
        between, _, after = rest.partition(second)
        return before + written[first] + between + written[second] + after


def _generator(seed: int, task: Task) -> np.random.Generator:
    """A task's own randomness: its order does not change with the other tasks of the file."""
    digest = hashlib.sha256(json.dumps(task).encode()).digest()
    return np.random.default_rng((seed, int.from_bytes(digest[:8], "little")))
