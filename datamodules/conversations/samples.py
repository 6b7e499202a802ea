"""From the conversations of a shard to the samples of a store.

    document (JSON)  ->  Conversation  ->  filters  ->  template  ->  tokens and labels  ->  samples that fit

Conversations are rendered and encoded in calls of about a hundred kilobytes, several calls at a time; the tokenizer
gives other threads their turn while it works. What is read, dropped or set aside comes out in the order of the
documents, whatever the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from datamodules.conversations.conversation import ASSISTANT, BadConversation, Conversation
from datamodules.conversations.encoding import Encoded, PieceEncoder
from datamodules.conversations.fitting import CannotFit, Fitter
from datamodules.conversations.policy import ConversationPolicy
from datamodules.conversations.template import Rendered
from datamodules.corpora.base import BadDocument, Document, Quarantine, QuarantinedRow
from datamodules.corpora.filters import DocumentFilters, Dropped, Drops, content_hash, kept
from datamodules.corpora.rows import MarkedDocument
from datamodules.prepare.encoding import CALL_CHARACTERS, default_num_threads, one_thread_a_call
from datamodules.prepare.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LABEL = "nothing of the conversation is a label"


class Made(NamedTuple):
    """What became of one conversation: samples, or why there are none."""

    samples: Sequence[Encoded] = ()
    refused: str = ""  # it cannot be used
    dropped: str = ""  # it is left out on purpose
    error: str = ""  # it stops everything
    changed: str = ""  # what was done to make it fit
    num_lost: int = 0  # tokens that are in no sample


class ConversationDocument(MarkedDocument):
    """A document as filters see it, and the conversation that it is."""

    conversation: Conversation
    hash: bytes


@dataclass
class _Later:
    """What is known only after encoding; kept apart, as reading is ahead by as many documents as there are threads."""

    drops: Drops = field(default_factory=Drops)
    rows: list[tuple[int, QuarantinedRow]] = field(default_factory=list)  # behind how many others


class ConversationSamples:
    """Samples of conversations.

    Args:
        tokenizer: Of transformers, with a backend of the tokenizers library.
        policy: How conversations are written and what of them is learned.
        num_threads: Threads that encode; None takes one for each core.
    """

    masked = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy: ConversationPolicy, *, num_threads: int | None
    ) -> None:
        self.policy = policy
        self.num_threads = num_threads or default_num_threads()
        self.template = policy.template.bind(tokenizer)
        self.pieces = PieceEncoder(tokenizer, self.template)
        length = policy.context_length
        self.fitter = None if length is None else Fitter(length, self.pieces, self._encode_one)

    def samples(
        self, documents: Iterable[Document], *, filters: DocumentFilters, drops: Drops, quarantine: Quarantine
    ) -> Iterator[Sample]:
        """Yield the samples of the conversations that no filter drops, in order.

        Raises:
            ValueError: A conversation is too long and the policy calls that an error, or it cannot be used and the
                quarantine is strict.
        """
        later = _Later()
        read: deque[tuple[ConversationDocument, int]] = deque()  # what is being encoded
        calls = self._calls(kept(self._read(documents, quarantine), filters=filters, drops=drops), read, quarantine)
        with one_thread_a_call():
            for results in self._results(calls):
                for made in results:
                    yield from self._used(made, *read.popleft(), later, quarantine)
        drops.merge(later.drops)
        for before, row in reversed(later.rows):
            quarantine.rows.insert(before, row)

    def make(self, conversations: Sequence[Conversation]) -> list[Made]:
        """Samples of each conversation."""
        found: list[Made | None] = [None] * len(conversations)
        rendered = self.template.render(conversations)
        usable = [k for k, one in enumerate(rendered) if not isinstance(one, str)]
        relabelled = [self._learned(rendered[k], conversations[k], last=True) for k in usable]  # type: ignore[arg-type]
        for k, encoded in zip(usable, self.pieces.encode(relabelled), strict=True):
            found[k] = Made(refused=encoded) if isinstance(encoded, str) else self._made(conversations[k], encoded)
        return [one or Made(refused=str(why)) for one, why in zip(found, rendered, strict=True)]

    def _made(self, conversation: Conversation, encoded: Encoded) -> Made:
        length = self.policy.context_length
        if length is None or len(encoded.ids) <= length:
            return self._finished(Made([encoded]), conversation)
        assert self.fitter is not None
        too_long = f"longer than context_length={length}"
        if self.policy.too_long == "drop":
            return Made(dropped=too_long, num_lost=len(encoded.ids))
        if self.policy.too_long == "error":
            return Made(
                error=f"{len(encoded.ids)} tokens, more than context_length={length}; set data.token_policy.too_long to"
                " split, truncate_middle or drop, or raise data.token_policy.context_length"
            )
        fit, how = {
            "split": (self.fitter.split, "split into samples"),
            "truncate_middle": (self.fitter.truncate_middle, "cut in the middle"),
        }[self.policy.too_long]
        try:
            fitted = fit(conversation, encoded)
        except CannotFit as problem:
            return Made(refused=f"{too_long}: {problem}")
        made = Made(fitted.samples, changed=f"{how}: {too_long}", num_lost=fitted.num_lost)
        return self._finished(made, conversation)

    def _finished(self, made: Made, conversation: Conversation) -> Made:
        if self.policy.loss_on == "all" and conversation.text is None:
            for encoded in made.samples:
                encoded.mask[:] = True
        learned = [encoded for encoded in made.samples if encoded.has_label]
        lost = made.num_lost + sum(len(encoded.ids) for encoded in made.samples if not encoded.has_label)
        if not learned:
            return Made(refused=NO_LABEL)
        return made._replace(samples=learned, num_lost=lost)

    def _encode_one(self, conversation: Conversation, last: bool) -> Encoded:
        (rendered,) = self.template.render([conversation])
        if isinstance(rendered, str):
            raise CannotFit(rendered)
        (encoded,) = self.pieces.encode([self._learned(rendered, conversation, last=last)])
        if isinstance(encoded, str):
            raise CannotFit(encoded)
        return encoded

    def _learned(self, rendered: Rendered, conversation: Conversation, *, last: bool) -> Rendered:
        """The labels that the policy asks for, but for `all`, which would hide where answers begin."""
        if self.policy.loss_on != "last_answer" or conversation.text is not None:
            return rendered
        answers = [k for k, message in enumerate(conversation.messages) if message.role == ASSISTANT]
        wanted = answers[-1] if last else None
        return rendered._replace(
            pieces=[
                piece._replace(label=False) if piece.label and piece.message != wanted else piece
                for piece in rendered.pieces
            ]
        )

    def _read(self, documents: Iterable[Document], quarantine: Quarantine) -> Iterator[ConversationDocument]:
        for document in documents:
            try:
                conversation = self._with_answers(Conversation.from_json(document.text))
            except BadConversation as problem:
                quarantine.add(document.place, str(problem))
                continue
            read = ConversationDocument(conversation.readable(), document.place)
            read.task, read.repair = getattr(document, "task", None), getattr(document, "repair", None)
            read.conversation, read.hash = conversation, content_hash(document.text)
            yield read

    def _with_answers(self, conversation: Conversation) -> Conversation:
        """The conversation after what the policy says of answers without text."""
        empty = [
            k
            for k, message in enumerate(conversation.messages)
            if message.role == ASSISTANT and not message.content.strip()
        ]
        if not empty or self.policy.empty_answers == "keep":
            return conversation
        if self.policy.empty_answers == "reject":
            raise BadConversation(
                f"message {empty[0] + 1} of the assistant is empty; set data.token_policy.empty_answers to keep or"
                " drop, or repair it"
            )
        gone = {number for k in empty for number in (k - 1, k)}
        left = tuple(message for k, message in enumerate(conversation.messages) if k not in gone)
        if not any(message.role == ASSISTANT for message in left):
            raise BadConversation("all answers are empty")
        return Conversation(left)

    def _calls(
        self,
        documents: Iterable[Document],
        read: deque[tuple[ConversationDocument, int]],
        quarantine: Quarantine,
    ) -> Iterator[list[Conversation]]:
        call: list[Conversation] = []
        size = 0
        for document in documents:
            assert isinstance(document, ConversationDocument)
            read.append((document, len(quarantine.rows)))
            call.append(document.conversation)
            size += len(document.text)
            if size >= CALL_CHARACTERS:
                yield call
                call, size = [], 0
        if call:
            yield call

    def _results(self, calls: Iterable[list[Conversation]]) -> Iterator[list[Made]]:
        waiting: deque[Future[list[Made]]] = deque()
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="tokenise")
        try:
            for call in calls:
                waiting.append(pool.submit(self.make, call))
                if len(waiting) > 2 * self.num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _used(
        self, made: Made, document: ConversationDocument, before: int, later: _Later, quarantine: Quarantine
    ) -> Iterator[Sample]:
        """The samples of one conversation, counting what was done to it."""
        if made.error:
            raise BadDocument(f"{document.place}: {made.error}")
        if made.refused:
            if quarantine.strict:
                quarantine.add(document.place, made.refused)
            later.rows.append((before, QuarantinedRow(document.place, made.refused)))
            return
        if made.dropped:
            later.drops.add(made.dropped, characters=len(document.text), tokens=made.num_lost)
            return
        if made.changed:
            later.drops.repaired[made.changed] = later.drops.repaired.get(made.changed, 0) + 1
        if made.num_lost:
            later.drops.merge(Drops({f"parts of conversations, {made.changed}": Dropped(0, 0, made.num_lost)}))
        for number, encoded in enumerate(made.samples):
            further = number > 0
            own = content_hash(f"{document.hash.hex()} {number}") if further else document.hash
            yield Sample(encoded.ids, encoded.mask, 0 if further else len(document.text), own, further)
