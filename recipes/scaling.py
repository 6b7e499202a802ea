"""What a scale leaves of a preset: it changes sizes, and everything that a recipe does stays.

A scale is written over the preset like any overlay, key by key. Four things do not come out right that way:

- The preset says things about its own model (`model.original_context_length`), which are wrong of the scale's: the
  scale's model is taken as its option describes it.
- A chat template in the control tokens of the preset's model has to change, but one in plain words, BOS and EOS, which
  every model has, is part of the recipe and stays.
- A scale's corpus plays the preset's sources. How they are mixed stays, and where every source is read by its size,
  these are the preset's sources alone.
- A step is so many tokens or so many samples, and a run so many steps or so many epochs. Whoever says one says that it
  is not the other: the last of preset, variant, scale, debug and command line decides. A scale that gives both sizes of
  a step leaves the preset its unit.

Cost: two or three more compositions of some milliseconds each, and none without an overlay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

RIVALS = (("tokens_per_step", "samples_per_step"), ("max_steps", "epochs"))
"""Keys of `data` that say the same thing in two units."""
CORPUS_RULES = ("mixture", "phases", "mix_at", "sampling", "at_exhaustion")
"""Keys of `corpus` that say how its sources are read, whatever they are."""
TOKENS_OF_EVERY_MODEL = ("bos", "eos")

ComposeWords = Callable[[Sequence[str]], Any]


def kept_words(words: Sequence[str], compose_words: ComposeWords, conf: Path) -> list[str]:
    """`chat_template=…` of the preset, where its scale names another but every model can write the preset's.

    Args:
        words: Of the command line.
        compose_words: Composes words; what it returns has `choices`.
        conf: The folder with the groups.
    """
    overlays = _overlays(words)
    if "scale" not in overlays or any(_name(word) == "chat_template" for word in words):
        return []
    scaled = compose_words(list(overlays.values())).choices["chat_template"]
    own = unscaled(words, compose_words).choices["chat_template"]
    template = OmegaConf.load(conf / "chat_template" / f"{own}.yaml")
    return [f"chat_template={own}"] if own != scaled and is_written_by_every_model(template) else []


def is_written_by_every_model(template: Any) -> bool:
    """Whether the node of a chat template needs no token but BOS and EOS."""
    if "assistant" not in template:  # a tokenizer's own
        return False
    return all(token in TOKENS_OF_EVERY_MODEL for token in _tokens(OmegaConf.to_container(template)))


def changes_model(composed: Any, compose_words: ComposeWords) -> bool:
    """Whether a scale brought a model of its own, so that what the preset said of its model is not true of this one."""
    if "scale" not in _overlays(composed.words):
        return False
    return composed.choices["model"] != unscaled(composed.words, compose_words).choices["model"]


def keep_dtype(preset: DictConfig, model: DictConfig) -> None:
    """Leave the weights of a scale's model in the precision that the preset has them in: of frozen ones, its choice."""
    for node in (preset, model):
        if "source" not in node or "dtype" not in node.source:
            return
    model.source.dtype = preset.source.dtype


def keep_corpus_rules(composed: Any, compose_words: ComposeWords) -> None:
    """Read a scale's corpus in the way of the preset's.

    Raises:
        ValueError: The preset reads every source by its size, and the scale's corpus has none of that name.
    """
    named = {_name(word) for word in composed.words}
    if "scale" not in _overlays(composed.words) or "corpus" in named:
        return
    own = unscaled(composed.words, compose_words)
    if own.choices["corpus"] == composed.choices["corpus"]:
        return
    corpus = composed.config.corpus
    for rule in CORPUS_RULES:
        if not any(name == f"corpus.{rule}" or name.startswith(f"corpus.{rule}.") for name in named):
            corpus[rule] = own.config.corpus[rule]
    if corpus.mixture is None:
        if missing := [str(role) for role in own.config.corpus.sources if role not in corpus.sources]:
            raise ValueError(
                f"corpus={composed.choices['corpus']} has nobody to play {', '.join(missing)}; add it in"
                f" conf/corpus/{composed.choices['corpus']}.yaml, or name a corpus"
            )
        played = {str(role): corpus.sources[role] for role in own.config.corpus.sources}
        # What a source refers to may be no role of the preset's: it comes along inside.
        corpus.sources = {role: OmegaConf.to_container(node, resolve=True) for role, node in played.items()}


def unscaled(words: Sequence[str], compose_words: ComposeWords) -> Any:
    """Preset and variant alone."""
    return compose_words([word for name, word in _overlays(words).items() if name in ("recipe", "variant")])


def settle_units(composed: Any, compose_words: ComposeWords, conf: Path) -> None:
    """Of each pair of rivals leave the one that was said last; of two that a scale says, the preset's."""
    data, overlays = composed.config.data, _overlays(composed.words)
    layers = [("words", {_name(word).removeprefix("data.") for word in composed.words if _name(word)[:5] == "data."})]
    for overlay in ("debug", "scale", "variant"):
        if overlay in overlays:
            layers.append((overlay, _keys_of_data(conf / overlay / f"{overlays[overlay].partition('=')[2]}.yaml")))
    for pair in RIVALS:
        layer, said = next(((name, keys & {*pair}) for name, keys in layers if keys & {*pair}), ("", set()))
        if len(said) == 1:
            _silence(data, *({*pair} - said))
        elif layer == "scale":
            own = unscaled(composed.words, compose_words)
            _silence(data, pair[0] if _is_given(own.config.data, pair[1]) else pair[1])
            for key in (key for key in pair if key not in own.config.data):
                if composed.choices["data"] == own.choices["data"]:
                    data.pop(key, None)


def _silence(data: DictConfig, *keys: str) -> None:
    for key in keys:
        if _is_given(data, key):
            data[key] = None


def _is_given(data: DictConfig, key: str) -> bool:
    return key in data and not OmegaConf.is_missing(data, key) and data[key] is not None


def _keys_of_data(file: Path) -> set[str]:
    body = OmegaConf.load(file)
    return {str(key) for key in (body.get("data") or {})} if isinstance(body, DictConfig) else set()


def _overlays(words: Sequence[str]) -> dict[str, str]:
    """Word of each overlay that is named."""
    named = {_name(word): word for word in words}
    return {overlay: named[overlay] for overlay in ("recipe", "variant", "scale", "debug") if overlay in named}


def _name(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")


def _tokens(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [str(value)] if key == "token" else _tokens(value)
    elif isinstance(node, list):
        for value in node:
            yield from _tokens(value)
