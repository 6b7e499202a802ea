from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from recipes.chatting.text_file import TextFile


def test_plain_text_is_read_whole_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.txt", "a.py", "a"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfone\r\ntw\xc3\xb6\n")
        file = TextFile(tmp_path / name)
        assert file.read()
        assert file.text == "one\ntwö\n"


def test_records_are_their_texts(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    file = TextFile(tmp_path / "a.jsonl.gz")
    file.read()
    assert file.text == "one\n\ntwo"


def test_only_another_content_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    file = TextFile(path)
    assert [file.read(), file.read()] == [True, False]
    path.write_text("one")  # saved anew
    os.utime(path, ns=(0, 0))
    assert not file.read()
    path.write_text("two")
    assert file.read()
    assert file.text == "two"


def test_same_size_and_time_of_change_do_not_hide_another_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    file, times = TextFile(path), path.stat()
    file.read()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.read()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"PK\x03\x04\0\0", "is binary and no text"),
        (b"caf\xe9", "is no text in UTF-8 (byte 0xe9 at 3)"),
    ],
)
def test_what_is_no_text_is_said_and_the_old_text_stays(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    file = TextFile(path)
    file.read()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(2):  # not only the first time
        with pytest.raises(ValueError, match=r"a\.txt") as fault:
            file.read()
        assert sentence in str(fault.value)
        assert "\n" not in str(fault.value)
    assert file.text == "before"
    path.write_text("after")
    assert file.read()


def test_folders_pipes_and_broken_records_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
    for name, sentence in (("", "is a folder"), ("pipe", "is no regular file"), ("a.jsonl", "cannot be read")):
        with pytest.raises(ValueError, match=sentence) as fault:
            TextFile(tmp_path / name).read()
        assert "corpus.sources" not in str(fault.value)
