"""Files opened as their uncompressed bytes, with an error where a compressed file breaks off or never ends.

Python's `zstandard` readers, and so `fsspec` and `datasets`, take the end of a truncated `.zst` file for the end of its
content: half a download trains without a word. Here a frame that does not finish is an error, as `gzip` does it. And a
file that unpacks to far more than text does, a decompression bomb, is given up before it fills memory or disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from datamodules.corpora.base import BadDocument

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # Python 3.12; only named here

COMPRESSIONS = (".gz", ".zst")
"""What local files may be compressed with; those of the hub may be `.bz2` and `.xz` too."""

BLOCK_BYTES = 1 << 10
"""Compressed bytes given to zstd at a time. Small, as it unpacks them at once, and zeros to 32,768 times as much."""

LARGEST_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes; the library's default refuses it
MAX_COMPRESSION_RATIO = 200.0
"""Text shrinks to a third or a tenth, tables and logs to a fiftieth; gzip cannot exceed 1,032, zstd can 30,000."""

UNJUDGED_BYTES = 64 << 20
"""Content up to this size may be as repetitive as it likes."""


class BinaryFile(Protocol):
    """What reading asks of a file: a `pathlib.Path`, or a file of the hub."""

    @property
    def suffix(self) -> str:
        """The last extension, with its dot."""
        ...

    @property
    def suffixes(self) -> Sequence[str]:
        """All extensions, each with its dot."""
        ...

    def open(self, mode: str, /) -> Any:
        """Its bytes as they are."""
        ...


def open_decompressed(file: BinaryFile, *, max_compression_ratio: float = MAX_COMPRESSION_RATIO) -> io.BufferedReader:
    """Open a file for reading, through the decompressor that its name asks for.

    Reading raises `EOFError` where compressed data breaks off, and `OSError` where it is no such data.

    Raises:
        BadDocument: While reading, where the content is more than `max_compression_ratio` times the file so far.
    """
    unpack = DECOMPRESSORS.get(file.suffix.lower())
    if unpack is None:
        return file.open("rb")
    compressed = _Counted(file.open("rb"))
    content = _Capped(unpack(compressed), compressed, max_ratio=max_compression_ratio, name=str(file))
    return io.BufferedReader(content, buffer_size=1 << 20)


def decompression_bomb(name: str, max_ratio: float) -> BadDocument:
    """What a file is that unpacks to too much."""
    return BadDocument(
        f"corpus file {name} unpacks to more than {max_ratio:g} times its size, which text does not; if that is right,"
        " raise corpus.sources.*.max_compression_ratio"
    )


class _Counted(io.RawIOBase):
    """A file that knows how many of its bytes were read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Buffer, /) -> int:
        data = self._file.read(len(memoryview(buffer)))
        memoryview(buffer)[: len(data)] = data
        self.num_bytes += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Capped(io.RawIOBase):
    """The content of a decompressor, as long as it is in proportion to what was read for it."""

    def __init__(self, content: Any, compressed: _Counted, *, max_ratio: float, name: str) -> None:
        self._content, self._compressed, self._max_ratio, self._name = content, compressed, max_ratio, name
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        # read1, as `read` throws away what it has where the file breaks off
        data = self._content.read1(len(memoryview(buffer)))
        memoryview(buffer)[: len(data)] = data
        self._num_bytes += len(data)
        if self._num_bytes > UNJUDGED_BYTES and self._num_bytes > self._max_ratio * self._compressed.num_bytes:
            raise decompression_bomb(self._name, self._max_ratio)
        return len(data)

    def close(self) -> None:
        self._content.close()
        self._compressed.close()
        super().close()


class _ZstdReader:
    """The content of all frames of a zstd file, one after the other."""

    def __init__(self, compressed: BinaryIO | io.RawIOBase) -> None:
        import zstandard

        self._compressed = compressed
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW_BYTES)
        self._error = zstandard.ZstdError
        self._frame = self._decompressor.decompressobj()
        self._blocks = io.BytesIO()  # compressed
        self._pending = b""  # compressed
        self._content = memoryview(b"")
        self._inside_frame = False

    def read1(self, size: int) -> memoryview:
        """Up to `size` bytes; none at the end."""
        while not self._content:
            self._pending = self._pending or self._next_block()
            if not self._pending:
                if self._inside_frame:
                    raise EOFError("Compressed file ended before the end of its last frame")
                break
            self._content = memoryview(self._decompress())
        content, self._content = self._content[:size], self._content[size:]
        return content

    def _next_block(self) -> bytes:
        block = self._blocks.read(BLOCK_BYTES)
        if not block:
            self._blocks = io.BytesIO(self._compressed.read(1 << 16) or b"")
            block = self._blocks.read(BLOCK_BYTES)
        return block

    def _decompress(self) -> bytes:
        if self._frame.eof:
            self._frame = self._decompressor.decompressobj()
        try:
            content = self._frame.decompress(self._pending)
        except self._error as error:
            raise OSError(str(error)) from error
        self._inside_frame = not self._frame.eof
        self._pending = self._frame.unused_data if self._frame.eof else b""
        return content

    def close(self) -> None:
        self._content = memoryview(b"")


DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _ZstdReader,
}
