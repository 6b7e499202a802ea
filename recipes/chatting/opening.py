"""Opens what `model=` names: its weights in the precision asked for, its tokenizer, and how far it reads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from datamodules.tokens.sentencepiece_tokenizer import SentencePieceTokenizer
from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.models.index.plain_llama import plain_llama
from lightning_modules.models.registry import register_models
from lightning_modules.rope.certificate import rope_faults
from lightning_modules.rope.config import long_range_parameters, original_length, text_config
from recipes.chatting.words import ChatWords
from recipes.verifying.folder import find_checkpoint, in_short

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BUNDLED = "demo"
NEWEST = "latest"
OUTPUTS = Path("outputs")
OWN_TOKENIZERS = ("index", "skywork")
"""Model types whose own tokenizer is code in their folder, of a SentencePiece file."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


class Place(NamedTuple):
    """Where a model is.

    Attributes:
        name: What messages call it.
        source: Folder or hub name of the weights.
        adapter: Folder of an adapter on top of them.
    """

    name: str
    source: str
    adapter: Path | None = None

    @property
    def run(self) -> Path | None:
        """The folder of the run whose export it is."""
        folder = Path(self.described_by).resolve().parent
        return folder if (folder / "run.json").is_file() else None

    @property
    def described_by(self) -> str:
        """Where the config and the tokenizer are: beside an adapter, if it has some."""
        return str(self.adapter) if self.adapter and (self.adapter / "config.json").is_file() else self.source


class Opened(NamedTuple):
    """A model that can be asked.

    Attributes:
        context_length: Tokens of text, question and answer together.
        dtype: Of the weights, as the words call it.
        notices: What its user should know about it.
    """

    place: Place
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    dtype: str
    notices: tuple[str, ...]


def open_model(words: ChatWords) -> Opened:
    """The model, in eval mode on its device.

    Raises:
        ValueError: There is no such model, it has no tokenizer, or it cannot do what the words ask.
    """
    place = find_model(words.model)
    device = _device(words.device)
    dtype = words.dtype if words.dtype != "auto" else ("bf16" if device.type == "cuda" else "fp32")
    tokenizer = _tokenizer(place)
    model = _load(place, DTYPES[dtype]).eval().to(device)  # type: ignore[arg-type]
    length = readable_length(model.config, tokenizer)
    if words.context_length is not None and words.context_length > length:
        raise ValueError(
            f"context_length={words.context_length} is more than the {length} tokens that model={place.name} reads;"
            " lower it, or extend the model first"
        )
    length = words.context_length or length
    if words.max_new_tokens >= length:
        raise ValueError(
            f"max_new_tokens={words.max_new_tokens} leaves nothing of the {length} tokens that model={place.name} reads"
            " for the text and the question; lower it"
        )
    return Opened(place, model, tokenizer, length, dtype, tuple(_notices(place, model)))


def find_model(name: str) -> Place:
    """The folder of a model, of a run's export or of an adapter, or a name of the hub.

    Raises:
        ValueError: A run was not exported, or an adapter's base model is not on this disk.
    """
    path = Path(name).expanduser()
    if not path.exists() and name == BUNDLED:
        import lightning_modules.models

        path = Path(next(iter(lightning_modules.models.__path__))) / BUNDLED
    if not path.exists() and name == NEWEST:
        path = _newest_run()
    if not path.exists():
        return Place(name, _hub_name(name))
    if not (path / "config.json").is_file() and (path / NEWEST).is_dir():
        path = path / NEWEST
    try:
        checkpoint = find_checkpoint(path)
    except ValueError as error:
        raise ValueError(str(error).replace(f"checkpoint={path} ", f"model={name} ", 1)) from error
    if checkpoint.base is None:
        return Place(name, str(checkpoint.folder))
    return Place(name, str(checkpoint.base), checkpoint.folder)


def readable_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """How far a model reads: its maximum; with rope_type dynamic, whose maximum is the base model's, what it grows to.

    Our exports write that into the tokenizer; else it is the factor times the maximum.
    """
    length = original_length(config)
    parameters = getattr(text_config(config), "rope_parameters", None)
    parameters = long_range_parameters(config, parameters) if parameters else {}
    if parameters.get("rope_type") != "dynamic":
        return length
    written = tokenizer.model_max_length
    return int(written) if length < written < 10**9 else int(length * float(parameters.get("factor", 1.0)))


def _hub_name(name: str) -> str:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"model={name} does not exist; name a folder on this disk or a model of the hub") from error
    return name


def _newest_run() -> Path:
    runs = [path for path in OUTPUTS.rglob("run.json") if (path.parent / "export" / "config.json").is_file()]
    if not runs:
        raise ValueError(
            f"model={NEWEST}: no run under {OUTPUTS}/ was exported; write one with python -m recipes.export recipe=…"
        )
    return max(runs, key=lambda path: (path.parent / "export" / "config.json").stat().st_mtime).parent


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} cannot be used ({in_short(error)}); set device=cpu or auto") from error
    return device


def _tokenizer(place: Place) -> PreTrainedTokenizerBase:
    folders = dict.fromkeys([place.described_by, place.source])
    local = [Path(folder) for folder in folders if Path(folder).is_dir()]
    having = [folder for folder in local if any((folder / file).is_file() for file in TOKENIZER_FILES)]
    if local and not having:
        raise ValueError(
            f"model={place.name} has no tokenizer; copy that of its base model into {place.described_by}, which has"
            " none of " + ", ".join(TOKENIZER_FILES[:3])
        )
    source = having[0] if having else Path(place.source)
    with _said(place, "the tokenizer of "):
        register_models()
        if having and not (source / "tokenizer.json").is_file() and (source / "tokenizer.model").is_file():
            said = json.loads((Path(place.described_by) / "config.json").read_text(encoding="utf-8"))
            if said.get("model_type") in OWN_TOKENIZERS:
                return SentencePieceTokenizer(str(source)).load()
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)


def _load(place: Place, dtype: torch.dtype) -> PreTrainedModel:
    register_models()
    with _said(place, ""):
        config = AutoConfig.from_pretrained(place.described_by, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.source, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"weights are missing in it: {', '.join(sorted(info['missing_keys'])[:3])}")
        if place.adapter is not None:
            from peft import PeftModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
                adapted: Any = PeftModel.from_pretrained(model, str(place.adapter))
                model = adapted.merge_and_unload()
    # Index's head would be normalised for every token anew, which on a CPU costs more than the product with it.
    return plain_llama(model) if isinstance(model, IndexForCausalLM) else model


@contextmanager
def _said(place: Place, what: str) -> Iterator[None]:
    """What goes wrong in a library while it reads a model, in one sentence."""
    try:
        yield
    except Exception as error:  # of the network, the hub, JSON, safetensors, peft and their like, each its own class
        hint = "it is neither a folder on this disk nor can it be read from the hub" if not _is_here(place) else ""
        reason = in_short(str(error).strip().partition("\n")[0] or error)
        advice = "name another model, or repair its folder"
        raise ValueError(f"{what}model={place.name} cannot be read ({hint or reason}); {advice}") from error


def _is_here(place: Place) -> bool:
    return Path(place.source).is_dir()


def _notices(place: Place, model: PreTrainedModel) -> Iterator[str]:
    try:
        yield from rope_faults(model)
    except ValueError as error:
        yield f"its RoPE cannot be looked at: {error}"
    if place.adapter is not None and not (place.adapter / "config.json").is_file():
        yield (
            "the adapter has no config.json beside it, so the RoPE is its base model's; if it was trained with another,"
            " put that config.json there"
        )
