"""Files opened as their uncompressed bytes, with an error where a compressed file breaks off.

Python's `zstandard` readers, and so `fsspec` and `datasets`, take the end of a truncated `.zst` file for the end of its
content: half a download trains without a word. Here a frame that does not finish is an error, as `gzip` does it.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # Python 3.12; only named here

COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 1 << 16
LARGEST_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes; the library's default refuses it


def open_decompressed(file: Path) -> io.BufferedReader:
    """Open a file for reading, through gzip or zstd where its name says so.

    Reading raises `EOFError` where compressed data breaks off, and `OSError` where it is no such data.
    """
    if file.suffix.lower() == ".zst":
        return io.BufferedReader(_ZstdReader(file.open("rb")), buffer_size=1 << 20)
    if file.suffix.lower() == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(file, "rb")), buffer_size=1 << 20)
    return file.open("rb")


class _ZstdReader(io.RawIOBase):
    """The content of all frames of a zstd file, one after the other."""

    def __init__(self, compressed: BinaryIO) -> None:
        import zstandard

        self._compressed = compressed
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW_BYTES)
        self._error = zstandard.ZstdError
        self._frame = self._decompressor.decompressobj()
        self._pending = b""  # compressed
        self._content = memoryview(b"")
        self._inside_frame = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        while not self._content:
            self._pending = self._pending or self._compressed.read(BLOCK_BYTES)
            if not self._pending:
                if self._inside_frame:
                    raise EOFError("Compressed file ended before the end of its last frame")
                return 0
            self._content = memoryview(self._decompress())
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._content))
        target[:size] = self._content[:size]
        self._content = self._content[size:]
        return size

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
        self._compressed.close()
        super().close()
