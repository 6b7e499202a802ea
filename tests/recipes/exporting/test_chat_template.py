"""A fine-tuned run carries its chat template out: what other programs read with it, against what training read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from datamodules.tokens.store import TokenStore
from recipes.chat import chat
from recipes.cli import run
from recipes.compose import compose
from recipes.export import export
from recipes.exporting.chat_template import asking, chat_sections, with_chat_template
from recipes.exporting.hugging_face import export_hugging_face
from recipes.train import train
from tests.lightning_modules.tiny_models import tiny_model
from tests.recipes.test_supervised_finetuning import conversation, words, write_records
from tests.recipes.words import replaced

__all__ = ["words"]  # a fixture

pytestmark = pytest.mark.usefixtures("reopened_here")

TOLD = {"role": "system", "content": "the sea was grey "}


def records() -> list[dict[str, Any]]:
    """Of one turn, of two, and with a system message."""
    found = [conversation(k) for k in range(24)]
    for k in range(0, 24, 3):
        found[k]["messages"] += conversation(k + 1)["messages"]
        found[k + 1]["messages"].insert(0, TOLD)
    return found


def trained_ids(store: TokenStore) -> list[list[int]]:
    return [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]


@pytest.fixture
def exported(words: list[str], tmp_path: Path) -> Path:
    """The folder of a run that trained an adapter on conversations and was exported both ways."""
    write_records(tmp_path / "train.jsonl", records())
    with_lora = replaced(words, "peft=lora", "peft.r=4", f"run_folder={tmp_path}/runs/it")
    assert run(with_lora, train) == 0
    assert run([*with_lora, "export.adapter_as=both"], export) == 0
    return tmp_path / "runs" / "it"


def test_exports_read_the_tokens_that_training_read_and_chat_works_from_a_copy(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (meta,) = (tmp_path / "runs" / "cache").glob("*/meta.json")
    trained = trained_ids(TokenStore(meta.parent))
    assert len(trained) == 24
    for name in ("export", "export-adapter"):
        tokenizer = AutoTokenizer.from_pretrained(exported / name)
        for record, ids in zip(records(), trained, strict=True):
            assert tokenizer.apply_chat_template(record["messages"])["input_ids"] == ids
        card = (exported / name / "README.md").read_text(encoding="utf-8")
        assert "`chat_template=plain`. The tokenizer here has that template" in card
    card = (exported / "export" / "README.md").read_text(encoding="utf-8")
    assert "- adapter: Lora of rank 4 and alpha 32, merged into the weights" in card
    card = (exported / "export-adapter" / "README.md").read_text(encoding="utf-8")
    settings = json.loads((exported / "export-adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert "library_name: peft\npipeline_tag: text-generation\n---\n" in card, (
        "no folder of ours as its base on the hub"
    )
    assert f"Rank 4, alpha 32, for `{settings['base_model_name_or_path']}`" in card

    text = tmp_path / "text.txt"
    text.write_text("the sea was grey\n", encoding="utf-8")
    sizes = set()
    for name in ("export", "export-adapter"):
        copied = shutil.copytree(exported / name, tmp_path / "elsewhere" / name)
        for folder, template in ((exported / name, "plain"), (copied, "tokenizer")):
            capsys.readouterr()
            chat([f"model={folder}", f"file={text}", "prompt=a ship?", "max_new_tokens=4"])
            err = capsys.readouterr().err
            assert f"asked with chat_template={template}" in err
            sizes.add(err[err.index("prompt of ") :].split(" tokens")[0])
    assert len(sizes) == 1, "the same prompt each time"


def test_a_run_that_is_not_fine_tuned_keeps_its_tokenizers_template(words: list[str]) -> None:
    config = compose(words).config
    config.stage = "continued_pretraining"
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer.name_or_path)
    tokenizer.chat_template = "its own"
    assert asking(config, tokenizer) is None
    assert chat_sections(config) == ()
    assert with_chat_template(tokenizer, None).chat_template == "its own"


def test_a_template_that_cannot_be_said_takes_another_away_and_the_card_says_so(words: list[str]) -> None:
    config = compose(words).config
    config.chat_template.user = [{"token": "Ġgrey"}, "{content}"]  # no text is tokenised into it
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer.name_or_path)
    tokenizer.chat_template = "one that the model was not trained with"
    how = asking(config, tokenizer)
    assert how is not None
    assert with_chat_template(tokenizer, how).chat_template is None
    assert tokenizer.chat_template is not None, "the run's own stays"
    (section,) = chat_sections(config)
    assert "the tokenizer here has no chat template: chat template plain has no form in Jinja" in section


def test_generation_ends_where_answers_of_training_end(words: list[str], tmp_path: Path) -> None:
    config = compose(words).config
    config.chat_template.assistant = ["{content}", {"token": "<|im_end|>"}]
    tokenizer = AutoTokenizer.from_pretrained(config.model.tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    how = asking(config, tokenizer)
    assert how is not None
    model = tiny_model("llama")
    model.generation_config.eos_token_id = 1
    folder = export_hugging_face(model, tokenizer, tmp_path / "export", context_length=64, stop_ids=how.stop_ids)
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == [1, tokenizer.convert_tokens_to_ids("<|im_end|>")]
