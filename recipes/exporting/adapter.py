"""A LoRA adapter on its way out: added into the weights of its model, or as it is with the RoPE beside it.

peft stores an adapter without its model's config. Trained on a model whose RoPE was changed, it would be read on the
base model's RoPE without an error, so the changed config.json is kept beside it; `python -m recipes.verify` reads it.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.exporting.hugging_face import replaced_whole, save_tokenizer, write_both_dialects

if TYPE_CHECKING:
    from peft import PeftModel


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
    config: Any = copy.deepcopy(model.get_base_model().config)
    config.use_cache = True
    with warnings.catch_warnings(), replaced_whole(folder) as partial:
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        model.save_pretrained(str(partial))
        config.save_pretrained(partial)
        save_tokenizer(tokenizer, partial, context_length=context_length)
        write_both_dialects(partial / "config.json")
        (partial / "README.md").unlink(missing_ok=True)  # peft's, of headings that nobody filled in
    return folder
