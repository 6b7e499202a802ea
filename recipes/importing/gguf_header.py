"""What a GGUF file says of its model, without its weights: the numbers and names at its beginning.

The format (github.com/ggml-org/ggml, docs/gguf.md): the letters GGUF, a version, how many tensors and key-value pairs,
and the pairs, each with the number of its type. Reading stops at the first list, which holds the vocabulary, so it
takes a millisecond. The package `gguf` takes two seconds for a vocabulary of 49,152, which no `show` should wait for,
and this way a configuration is composed without it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_STRING_BYTES = 1 << 24


def header(path: str | Path) -> dict[str, Any]:
    """Keys such as `general.architecture` and `llama.context_length`; those after the first list are not read.

    Raises:
        ValueError: There is no such file, or it is no GGUF file.
    """
    file = Path(path).expanduser()
    try:
        status = file.stat()
        return dict(_header_once(file, status.st_size, status.st_mtime_ns))
    except (OSError, struct.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it ends early" * isinstance(error, struct.error) or str(error)
        raise ValueError(f"model.path={path} cannot be read ({reason}); set model.path to a GGUF file") from error


def of_model(path: str | Path, key: str, default: Any = None) -> Any:
    """A key of the model's architecture, such as `context_length`.

    Raises:
        ValueError: There is none, and no default.
    """
    found = header(path)
    architecture = found.get("general.architecture")
    value = found.get(f"{architecture}.{key}", default)
    if value is None:
        raise ValueError(f"model.path={path} does not say {architecture}.{key}; set model.path to another GGUF file")
    return value


@lru_cache(maxsize=8)
def _header_once(file: Path, size: int, changed: int) -> tuple[tuple[str, Any], ...]:
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ValueError(f"model.path={file} is no GGUF file; set model.path to one")
        version, _, num_pairs = struct.unpack("<IQQ", handle.read(20))
        if version not in (2, 3):
            raise ValueError(f"model.path={file} has version {version} of GGUF; versions 2 and 3 are read")
        return tuple(_pairs(handle, num_pairs))


def _pairs(handle: BinaryIO, num_pairs: int) -> Iterator[tuple[str, Any]]:
    for _ in range(num_pairs):
        key = _string(handle)
        (kind,) = struct.unpack("<I", handle.read(4))
        if kind == ARRAY:
            if not key.startswith("tokenizer."):  # such as general.languages, which stands before the numbers
                _skip_list(handle)
                continue
            return
        yield key, _string(handle) if kind == STRING else _scalar(handle, kind)


def _skip_list(handle: BinaryIO) -> None:
    kind, length = struct.unpack("<IQ", handle.read(12))
    for _ in range(length):
        if kind == STRING:
            _string(handle)
        elif kind == ARRAY:
            _skip_list(handle)
        else:
            _scalar(handle, kind)


def _scalar(handle: BinaryIO, kind: int) -> Any:
    form = f"<{SCALARS[kind]}" if kind in SCALARS else None
    if form is None:
        raise struct.error(f"type {kind}")
    return struct.unpack(form, handle.read(struct.calcsize(form)))[0]


def _string(handle: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", handle.read(8))
    if length > MAX_STRING_BYTES:
        raise struct.error(f"a text of {length} bytes")
    text = handle.read(length)
    if len(text) < length:
        raise struct.error("end of file")
    return text.decode("utf-8")
