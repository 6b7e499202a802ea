"""Tokens that a configuration names: those of the tokenizer, or rows of the vocabulary that no text reaches."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from datamodules.augmentations.free_rows import free_rows
from datamodules.prepare.cutting import PROBE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def known_ids(names: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, key: str) -> list[int]:
    """The ids of tokens that the tokenizer has, in the order of their names.

    Args:
        names: As they stand in the tokenizer's vocabulary.
        tokenizer: Made the tokens of the documents.
        key: Key of `augmentation` that messages name.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if name not in vocabulary:
            near = difflib.get_close_matches(name, vocabulary, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}" if near else "give names as they stand in its vocabulary"
            raise ValueError(f"augmentation.{key} lists {name}, which the tokenizer does not have; {hint}")
    return [vocabulary[name] for name in names]


def known_or_free_ids(
    names: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, keys: str
) -> list[int]:
    """The ids of tokens, in the order of their names; those that the tokenizer does not have take free rows.

        tokenizer      <s> 0   </s> 1   a 2   b 3         vocab_size = 6: no token has the rows 4 and 5
        names          [b, <extra_id_0>]            ->    [3, 4]

    Args:
        names: As they stand in the tokenizer's vocabulary, or new ones.
        tokenizer: Made the tokens of the documents.
        vocab_size: Rows of the model's embedding.
        keys: What messages say asks for them.

    Raises:
        ValueError: The tokenizer lacks names, and there is no free row for each of them.
    """
    found = {name: row for name, row in tokenizer.get_vocab().items() if name in set(names) and row < vocab_size}
    missing = [name for name in dict.fromkeys(names) if name not in found]
    free = [row for row in free_rows(tokenizer, vocab_size=vocab_size) if row not in found.values()] if missing else []
    if len(free) < len(missing):
        raise ValueError(
            f"{keys} name {len(missing)} tokens that the tokenizer does not have, such as {missing[0]}, and the"
            f" model's vocabulary of {vocab_size} has {len(free)} rows that no text reaches; name tokens that it has,"
            " or ask for fewer"
        )
    found |= dict(zip(missing, free, strict=False))
    return [found[name] for name in names]


def with_names(tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that knows rows by name which had no token, where it can take them; else itself.

        tokenizer      <s> 0   </s> 1   a 2   b 3             ids = {<|utk:<D>|>: 4, <|utk:<S>|>: 5}
        the copy       <s> 0   </s> 1   a 2   b 3   <|utk:<D>|> 4   <|utk:<S>|> 5

    They are special tokens, so that `skip_special_tokens` leaves them out. A row that has a token already keeps its
    name: reserved tokens have one, and a vocabulary of bytes must not lose one. A tokenizer numbers what is added to it
    by itself; where its numbers are not the rows', or another token would change, nothing is added.

    Args:
        tokenizer: Made the tokens of the run.
        ids: Name -> row, below the model's vocab_size, so that the vocabulary does not grow beyond it.
    """
    from transformers import AddedToken

    before = tokenizer.get_vocab()
    taken = set(before.values())
    new = {name: row for name, row in sorted(ids.items(), key=lambda item: item[1]) if row not in taken}
    if not new or set(new) & set(before):
        return tokenizer
    made = copy.deepcopy(tokenizer)
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], special_tokens=True)
    same_text = made.encode(PROBE, add_special_tokens=False) == tokenizer.encode(PROBE, add_special_tokens=False)
    return made if same_text and made.get_vocab() == before | new else tokenizer
