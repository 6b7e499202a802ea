"""Where a tokenizer comes from: a Hugging Face folder or name, or byte-level BPE trained on a corpus."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.corpora.base import Corpus


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a hub name or folder.

    Args:
        name_or_path: Hub name or folder.
        revision: Branch, tag or commit of a hub name.
    """

    name_or_path: str
    revision: str | None = None

    def load(self) -> PreTrainedTokenizerBase:
        try:
            # None, transformers' default, would ask on the terminal whether to run a repository's code.
            return AutoTokenizer.from_pretrained(self.name_or_path, revision=self.revision, trust_remote_code=False)
        except Exception as error:  # of the network, the hub, JSON, and `tokenizers`, which raises plain `Exception`
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"tokenizer {self.name_or_path} cannot be read ({reason}); set model.tokenizer.name_or_path"
            ) from error


@dataclass(frozen=True)
class TrainedTokenizer:
    """Byte-level BPE trained on a corpus; the same corpus and size give the same tokenizer.

    Args:
        corpus: Texts to train on.
        vocab_size: Tokens at most, with BOS `<s>` (0), EOS `</s>` (1) and the 256 bytes; a small corpus fills fewer.
        context_length: Written into the tokenizer for its readers.
    """

    corpus: Corpus
    vocab_size: int
    context_length: int

    def load(self) -> PreTrainedTokenizerBase:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if self.vocab_size < 258:
            raise ValueError(
                f"vocab_size={self.vocab_size} has no room for 256 bytes, BOS and EOS; set"
                " model.tokenizer.vocab_size to 258 or more"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self.corpus.texts(), trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=self.context_length
        )
