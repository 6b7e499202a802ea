from pathlib import Path

import pytest

from datamodules.tokens.tokenise import tokenizer_fingerprint
from datamodules.tokens.tokenizer import PretrainedTokenizer, TrainedTokenizer
from tests.datamodules.toy import Texts, make_texts, make_tokenizer

TEXTS = make_texts(30)


@pytest.mark.parametrize("parallel", ["false", "true"])
def test_trained_tokenizer_is_a_function_of_its_corpus_and_size(monkeypatch: pytest.MonkeyPatch, parallel: str):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    first = tokenizer_fingerprint(make_tokenizer())
    assert all(tokenizer_fingerprint(make_tokenizer()) == first for _ in range(5))
    assert tokenizer_fingerprint(make_tokenizer(301)) != first


def test_trained_tokenizer_has_the_size_and_the_special_tokens_asked_for():
    tokenizer = TrainedTokenizer(Texts(TEXTS), vocab_size=300, context_length=64).load()
    assert len(tokenizer) == 300
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize("text", [*TEXTS[:3], "日本語 🦊\r\n\t", "  two  spaces  ", "\u0000\u2028"])
def test_trained_tokenizer_loses_nothing(text: str):
    tokenizer = make_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_trained_tokenizer_learns_from_its_corpus():
    tokenizer = TrainedTokenizer(Texts(["abcabc " * 50]), vocab_size=300, context_length=64).load()
    assert len(tokenizer("abcabc")["input_ids"]) == 1  # type: ignore[arg-type]


def test_vocabulary_without_room_for_the_bytes_is_refused():
    assert len(TrainedTokenizer(Texts(TEXTS), vocab_size=258, context_length=64).load()) == 258
    with pytest.raises(
        ValueError, match=r"vocab_size=257 has no room.*set model\.tokenizer\.vocab_size to 258 or more"
    ):
        TrainedTokenizer(Texts(TEXTS), vocab_size=257, context_length=64).load()


def test_pretrained_tokenizer_is_what_was_saved(tmp_path: Path):
    saved = make_tokenizer()
    saved.save_pretrained(tmp_path)
    loaded = PretrainedTokenizer(str(tmp_path)).load()
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(saved)
    assert [loaded(text)["input_ids"] for text in TEXTS] == [saved(text)["input_ids"] for text in TEXTS]


def test_missing_or_broken_tokenizer_gives_one_sentence(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    make_tokenizer().save_pretrained(broken)
    for k, content in enumerate(["{", "{}", '{"version": "1.0", "model": {"type": "None"}}']):
        (tmp_path / f"broken{k}").mkdir()
        for file in broken.iterdir():
            (tmp_path / f"broken{k}" / file.name).write_bytes(file.read_bytes())
        (tmp_path / f"broken{k}" / "tokenizer.json").write_text(content)
    names = [tmp_path / "empty", *(tmp_path / f"broken{k}" for k in range(3)), "nobody/no-such-tokenizer"]
    for name in names:
        with pytest.raises(ValueError, match=f"tokenizer {name} cannot be read .*; set model.tokenizer.name") as caught:
            PretrainedTokenizer(str(name)).load()
        assert "\n" not in str(caught.value)
