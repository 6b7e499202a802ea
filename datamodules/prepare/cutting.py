"""Where a text may be cut so that its pieces, tokenised alone, give exactly the tokens of the whole.

A tokenizer takes one text on one thread, and its time and memory grow with the text: a book of a million tokens would
hold up the job. So texts are cut into pieces of a few thousand characters, of which no result depends on another:

    "…the first line\\nThe second was lon|ger than"      no: inside a word
    "…the first line|\\nThe second"                       no: some tokenizers join punctuation and line ends
    "…the first line\\n|The second was longer| than…"    yes, at either place

Whether such a place is safe follows from what the tokenizer is made of, and is decided once, from its description:

* The normaliser works on single characters, or joins marks to letters: nothing reaches over "letter, space, letter".
* The pre-tokenizer always ends a word at the place, whatever stands before and after. The regular expressions of GPT-2,
  Llama 3, Qwen and GPT-4o consist of alternatives of which none matches a letter and then a space, or a line end and
  then a letter, and which look ahead of spaces alone.
* Without words (SentencePiece's BPE, as Llama 2), no merge makes a token of a letter and a space after it. Merges on
  the two sides then never meet, and happen in the same order with the other side as without.
* No added token begins or ends with a letter, or lies over the place.

A tokenizer of which one is not known to hold is given whole texts. The alternative, encoding pieces with an overlap and
joining them where the ids agree, is right as a rule and not always. Cost: a search for the next place in each piece.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

PIECE_CHARACTERS = 4096
"""The tokenizers library is fastest on texts of about this size: what it allocates stays in the cache."""

LETTER = "A-Za-zΑ-ΡΣ-Ωα-ωА-ИК-Яа-ик-я一-鿿ぁ-ゖァ-ヺ가-힣"  # noqa: RUF001
"""Letters that stay letters in every Unicode form, and that no tokenizer's Unicode tables lack."""

SPACE = re.compile(f"[{LETTER}](?= [{LETTER}])")
SPACE_ASCII = re.compile("[A-Za-z](?= [A-Za-z])")
SPACE_OR_LINE = re.compile(f"[{LETTER}](?= [{LETTER}])|[!-~。」』！？…{LETTER}]\n(?=[{LETTER}])")  # noqa: RUF001

LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer"}
SPLITTING = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
SAFE_ALTERNATIVES = {
    *CONTRACTIONS.split("|"),
    f"(?i:{CONTRACTIONS})",
    r"'(?:[sdmt]|ll|ve|re)",
    r"'(?i:[sdmt]|ll|ve|re)",
    *CASED,
    *(f"{cased}(?i:{CONTRACTIONS})?" for cased in CASED),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+"),
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"),
    *(rf" ?[^\s\p{{L}}\p{{N}}]+{after}" for after in ("", r"[\r\n]*", r"[\r\n/]*")),
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
}
"""Parts of pre-tokenizers' regular expressions that end a word at the places of `SPACE_OR_LINE`, as the header says."""

PROBE = (
    "It wasn't far; we'LL see  what\n\n\nThe 12345 cats of 1,000 sat. \t So\r\nit ends\n"
    "Zoë naïve ﬁne 🙂👩‍👩‍👧 你好世界。\n你好 the end <s> of it </s> all   \n"
    "  Привет мир e\u0301a b 한국어 말 \u00a0x y\n"
)


@dataclass(frozen=True)
class CutRule:
    """How texts are cut for one tokenizer.

    Args:
        place: Matches what stands before a place.
        drop_space: Leave out the space after the place, as the tokenizer puts one in front of every text.
    """

    place: re.Pattern[str]
    drop_space: bool = False

    def pieces(self, text: str, size: int = PIECE_CHARACTERS) -> list[str]:
        """The text in pieces of at least `size` characters, as long as there are places; the last may be shorter."""
        return [text[start:end] for start, end in self.spans(text, size)]

    def spans(self, text: str, size: int = PIECE_CHARACTERS) -> list[tuple[int, int]]:
        """Where the pieces begin and end."""
        found: list[tuple[int, int]] = []
        start = 0
        while len(text) - start > 2 * size:
            match = self.place.search(text, start + size)
            if match is None:
                break
            found.append((start, match.end()))
            start = match.end() + self.drop_space
        found.append((start, len(text)))
        return found


def cut_rule(backend: Any) -> CutRule | None:
    """The rule of a tokenizer of the tokenizers library; None where texts must stay whole."""
    rule = _rule(json.loads(backend.to_str()), backend)
    if rule is None:
        return None
    text = PROBE * 3  # what the description promises is tried, too: a later version of the library may differ
    pieces = backend.encode_batch_fast(rule.pieces(text, size=8), add_special_tokens=False)
    whole = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return rule if [token for piece in pieces for token in piece.ids] == whole else None


def _rule(description: dict[str, Any], backend: Any) -> CutRule | None:
    model = description["model"]
    normalizers = _flat(description["normalizer"], "normalizers")
    pre_tokenizers = _flat(description["pre_tokenizer"], "pretokenizers")
    if model.get("dropout") or not _added_tokens_are_apart(description, backend):
        return None
    marks_spaces = bool(normalizers) and _replaces_spaces(normalizers[-1])
    prepends = marks_spaces and len(normalizers) == 2 and normalizers[0] == {"type": "Prepend", "prepend": "▁"}
    if not marks_spaces and not all(normalizer["type"] in LOCAL_NORMALIZERS for normalizer in normalizers):
        return None
    if marks_spaces and not prepends and len(normalizers) > 1:
        return None
    kinds = [_kind(pre_tokenizer, marks_spaces) for pre_tokenizer in pre_tokenizers]
    if None in kinds:
        return None
    if "words" not in kinds:
        spaces = marks_spaces or any(pre_tokenizer["type"] == "Metaspace" for pre_tokenizer in pre_tokenizers)
        return CutRule(SPACE_ASCII, drop_space=prepends) if spaces and _merges_stay_in_words(model) else None
    if marks_spaces:
        return None  # no tokenizer is known that has both
    lines = all(
        pre_tokenizer["type"] in ("Split", "Digits")
        or (pre_tokenizer["type"] == "ByteLevel" and not pre_tokenizer["add_prefix_space"])
        for pre_tokenizer in pre_tokenizers
    )
    return CutRule(SPACE_OR_LINE if lines else SPACE)


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [inner for child in part[key] for inner in _flat(child, key)]
    return [part]


def _replaces_spaces(normalizer: dict[str, Any]) -> bool:
    return (
        normalizer["type"] == "Replace"
        and normalizer.get("pattern") == {"String": " "}
        and normalizer.get("content") == "▁"
    )


def _kind(pre_tokenizer: dict[str, Any], marks_spaces: bool) -> str | None:
    """`words`: ends a word at every place; `through`: cares for no place; None: not known."""
    match pre_tokenizer["type"]:
        case "ByteLevel":
            return "words" if pre_tokenizer.get("use_regex", True) else "through"
        case "Digits":
            return "through"
        case "Metaspace" if pre_tokenizer["replacement"] == "▁":
            return "words" if pre_tokenizer.get("split", True) else "through"
        case "Split" if pre_tokenizer["pattern"] == {"String": " "} and marks_spaces:
            return "through"  # Gemma's: there are no spaces left
        case "Split" if pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
            pattern = pre_tokenizer["pattern"].get("Regex")
            return "words" if pattern and set(_alternatives(pattern)) <= SAFE_ALTERNATIVES else None
        case kind if kind in SPLITTING:
            return "words"
    return None


def _alternatives(pattern: str) -> list[str]:
    """The pattern's alternatives: its parts between `|` outside of brackets."""
    parts, depth, escaped = [""], 0, False
    for character in pattern:
        if character == "|" and depth == 0 and not escaped:
            parts.append("")
            continue
        if not escaped:
            depth += (character in "([") - (character in ")]")
        escaped = character == "\\" and not escaped
        parts[-1] += character
    return parts


def _merges_stay_in_words(model: dict[str, Any]) -> bool:
    """Whether BPE without words never joins a letter and a space after it."""
    if model["type"] != "BPE" or model.get("ignore_merges"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    single = {"▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    if not single <= model["vocab"].keys():  # unknown characters side by side become one token
        return False
    return not any(re.search("[A-Za-z]▁", token) for token in model["vocab"])


def _added_tokens_are_apart(description: dict[str, Any], backend: Any) -> bool:
    for token in description["added_tokens"]:
        forms = {token["content"]}
        if token["normalized"] and backend.normalizer is not None:
            forms.add(backend.normalizer.normalize_str(token["content"]))
        for form in forms:
            if form in (" ", "▁") or "\n" in form:
                return False
            if re.search(f"^[ ▁]?[{LETTER}]|[{LETTER}]$|[{LETTER}][ ▁]", form):
                return False
    return True
