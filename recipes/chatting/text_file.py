"""The file that is asked about: read whole, and again once its content is another."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

RECORDS = (".jsonl", ".json", ".parquet")
PACKED = (".gz", ".zst")
"""What the readers of corpora take; every other name is plain text."""


class TextFile:
    """A text on disk.

    Args:
        path: Of any name; records and packed files are read as a corpus is, documents separated by an empty line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        self._digest: bytes | None = None
        self._state: tuple[int, ...] | None = None

    def read(self) -> bool:
        """Read what is there now, if it may be something else than at the last time.

        Returns:
            Whether the text is another. What was read before stays where reading fails.

        Raises:
            ValueError: It is missing, empty, no text, or cannot be read.
        """
        state = self._look()
        if state == self._state:
            return False
        while True:  # who writes it may not have finished
            text = self._content()
            after = self._look()
            if after == state:
                break
            state = after
        if not text.strip():
            raise ValueError(f"file={self.path} is empty; name a file with text in it")
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        changed = digest != self._digest
        self.text, self._digest, self._state = text, digest, state
        return changed

    def _look(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        if stat.S_ISDIR(found.st_mode):
            raise ValueError(f"file={self.path} is a folder; name a file in it")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"file={self.path} is no regular file (a pipe, socket or device); name a file")
        if found.st_size == 0:
            raise ValueError(f"file={self.path} is empty; name a file with text in it")
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)

    def _content(self) -> str:
        if self.path.suffix.lower() in (*RECORDS, *PACKED):
            return self._of_corpus()
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise self._unreadable(error) from error
        if b"\0" in data:
            raise ValueError(f"file={self.path} is binary and no text; convert it to text first")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"file={self.path} is no text in UTF-8 (byte {data[error.start]:#04x} at {error.start}); convert it to"
                " text first, for example with iconv"
            ) from error
        return text.replace("\r\n", "\n")

    def _of_corpus(self) -> str:
        from datamodules.corpora.files import FileCorpus

        try:
            return "\n\n".join(FileCorpus(path=str(self.path)).texts())
        except ValueError as error:
            reason = str(error).partition("; ")[0].removeprefix("corpus file ")  # what follows is advice for a recipe
            raise ValueError(f"file={self.path} cannot be read ({reason}); repair it or name a plain text") from error

    def _unreadable(self, error: OSError) -> ValueError:
        return ValueError(f"file={self.path} cannot be read ({error.strerror}); name a file that can")
