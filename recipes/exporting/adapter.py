"""A LoRA adapter on its way out: added into the weights of its model, or as it is with the RoPE beside it.

peft stores an adapter without its model's config. Trained on a model whose RoPE was changed, it would be read on the
base model's RoPE without an error, so the changed config.json is kept beside it; `python -m recipes.verify` reads it.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.peft.folder import BASE, save_adapter
from lightning_modules.peft.record import base_fingerprint
from recipes.exporting.hugging_face import replaced_whole, save_tokenizer, write_both_dialects

if TYPE_CHECKING:
    from peft import PeftModel


def wrapped(model: PreTrainedModel, adapter: Path, *, trained_on: Path) -> PeftModel:
    """The model with an adapter that was trained on it.

    An adapter names no RoPE: on a model with another one it would load, and be read wrongly, without an error.

    Args:
        model: The model, its RoPE already patched.
        adapter: PEFT's folder.
        trained_on: The export of `model`, which the adapter's settings name if it was trained on that.

    Raises:
        ValueError: It was trained on other weights, as a file beside it says; or neither do its settings name this
            export, nor is there a config.json beside the adapter with the model's RoPE; or it does not
            fit the model.
    """
    from peft import PeftModel

    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if base is None or Path(base).expanduser().resolve() != trained_on.resolve():
        _refuse_other_base(model, adapter)
        beside = adapter / "config.json"
        own = json.loads(model.config.to_json_string(use_diff=False)).get("rope_parameters")
        theirs = json.loads(beside.read_text(encoding="utf-8")).get("rope_parameters") if beside.is_file() else None
        if theirs is None or theirs != own:
            says = f"was trained with rope_parameters={theirs}" if theirs else "does not say with which RoPE"
            raise ValueError(
                f"export.adapter={adapter} was trained on {base}, not on {trained_on}, and {says}, where this run's is"
                f" {own}; set export.adapter to one that was trained on this run's export"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
            return PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:  # sizes or names of other layers
        reason = str(error).splitlines()[0]
        raise ValueError(f"export.adapter={adapter} does not fit the model of this run ({reason})") from error


def _refuse_other_base(model: PreTrainedModel, adapter: Path) -> None:
    """Refuse an adapter of ours of another base model, as of the one that this run's own adapter started from too."""
    if not (adapter / BASE).is_file():
        return
    base = json.loads((adapter / BASE).read_text(encoding="utf-8"))
    if base["fingerprint"] != base_fingerprint(model):
        raise ValueError(
            f"export.adapter={adapter} was trained on the weights of {base['name']}, and this run's trained weights are"
            " others; set export.adapter to one that was trained on this run's export, or to null"
        )


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapter added into the weights, ready for `export_hugging_face`; `model` is used up.

    Raises:
        ValueError: If the sum holds something that is not a number.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        whole: Any = model.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    return whole


def export_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, context_length: int) -> Path:
    """Write the adapter alone, with its tokenizer and the config.json of the model that it was trained on.

    Read it by loading the base model with this folder's config first: `AutoModelForCausalLM.from_pretrained(base,
    config=AutoConfig.from_pretrained(folder))`, then `PeftModel.from_pretrained(model, folder)`.

    Args:
        model: The wrapped model, its RoPE already patched.
        tokenizer: Its tokenizer.
        folder: Final place; an earlier export there is replaced.
        context_length: Tokens that the model reads, written into the tokenizer too.
    """
    with warnings.catch_warnings(), replaced_whole(folder) as partial:
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        model.save_pretrained(str(partial))
        (partial / "README.md").unlink(missing_ok=True)  # peft's, of headings that nobody filled in
        config: Any = model.get_base_model().config
        _write_beside(partial, config, tokenizer, context_length=context_length)
    return folder


def export_trained_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, context_length: int
) -> Path:
    """`export_adapter` for an adapter that a run trained: `model` has it inside, and no wrapper of peft's around it.

    What trained beside it (LongLoRA's embeddings and norms) goes along, in peft's own form.
    """
    with replaced_whole(folder) as partial:
        num_bytes = save_adapter(model, partial)
        _write_beside(partial, model.config, tokenizer, context_length=context_length)
    print(f"adapter: {folder} ({num_bytes / 1e6:.1f} MB)", file=sys.stderr)
    return folder


def _write_beside(
    folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, context_length: int
) -> None:
    """What an adapter does not say itself: the RoPE, and the tokenizer."""
    config = copy.deepcopy(config)
    config.use_cache = True
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, context_length=context_length)
    write_both_dialects(folder / "config.json")
