import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datamodules.tokens.store import NpyWriter, TokenStore, locked, write_store

ROOT = Path(__file__).parents[3]
DOCUMENTS = [np.array([5, 0, 65_535]), np.array([], dtype=np.int64), np.array([7]), np.arange(1000)]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32), (200_000, np.uint32)])
def test_store_gives_back_its_documents_in_the_smallest_width(tmp_path: Path, vocab_size: int, dtype: type):
    documents = [*DOCUMENTS, np.array([vocab_size - 1])]
    write_store(tmp_path / "s", documents, vocab_size=vocab_size, meta={"policy": "ours"})
    store = TokenStore(tmp_path / "s")
    assert store.tokens.dtype == dtype
    assert (tmp_path / "s" / "tokens.bin").stat().st_size == 1005 * np.dtype(dtype).itemsize
    assert len(store) == store.meta["num_documents"] == 5
    assert store.num_tokens == store.meta["num_tokens"] == 1005
    assert store.meta["policy"] == "ours"
    assert store.lengths.tolist() == [3, 0, 1, 1000, 1]
    for d, document in enumerate(documents):
        whole = store.slice(d, 0, len(document))
        assert whole.dtype == np.int64
        np.testing.assert_array_equal(whole, document)
    np.testing.assert_array_equal(store.slice(3, 20, 30), np.arange(20, 30))


def test_token_id_that_would_wrap_around_is_refused(tmp_path: Path):
    with pytest.raises(AssertionError, match="wrap around"):
        write_store(tmp_path / "s", [np.array([65_536])], vocab_size=65_536, meta={})


def test_pickled_store_carries_its_folder_and_not_its_tokens(tmp_path: Path):
    store = write_store(tmp_path / "s", [np.arange(50_000)], vocab_size=50_000, meta={})
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    copy = pickle.loads(pickled)
    assert isinstance(copy.tokens, np.memmap)
    np.testing.assert_array_equal(copy.tokens, store.tokens)
    np.testing.assert_array_equal(copy.offsets, store.offsets)


@pytest.mark.parametrize(("dtype", "row_shape"), [(np.int64, ()), (np.uint8, (16,))])
@pytest.mark.parametrize("sizes", [[], [1], [3, 0, 1000], [7] * 200])
def test_file_written_in_pieces_is_the_one_that_numpy_saves(
    tmp_path: Path, dtype: type, row_shape: tuple[int, ...], sizes: list[int]
):
    rows = np.random.default_rng(0).integers(0, 200, (sum(sizes), *row_shape)).astype(dtype)
    with NpyWriter(tmp_path / "ours.npy", dtype, row_shape) as writer:
        for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            writer.append(rows[start : start + size])
    np.save(tmp_path / "numpy.npy", rows)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_corpus_without_a_token_is_an_error_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no text"):
        write_store(tmp_path / "s", [np.array([], dtype=np.int64)], vocab_size=10, meta={})
    assert list(tmp_path.iterdir()) == []


def test_failed_reading_leaves_nothing(tmp_path: Path):
    def documents() -> Iterator[np.ndarray]:
        yield np.arange(5)
        raise ValueError("line 2 is bad")

    with pytest.raises(ValueError, match="line 2 is bad"):
        write_store(tmp_path / "s", documents(), vocab_size=10, meta={})
    assert list(tmp_path.iterdir()) == []


KILLED_BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from datamodules.tokens.store import locked, write_store

def documents():
    for k in range(1000):
        yield np.full(10_000, 7)
    print("half", flush=True)
    time.sleep(60)
    yield np.arange(5)

folder = Path(sys.argv[1])
with locked(folder.with_name("s.lock")):
    write_store(folder, documents(), vocab_size=10, meta={})
"""


def test_killed_build_leaves_no_store_and_the_next_one_is_clean(tmp_path: Path):
    folder = tmp_path / "s"
    command = [sys.executable, "-c", KILLED_BUILD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        (partial,) = tmp_path.glob("s.*.partial")
        assert (partial / "tokens.bin").stat().st_size > 10_000_000
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    with locked(tmp_path / "s.lock"):  # the dead process does not hold it
        store = write_store(folder, [np.arange(5)], vocab_size=10, meta={})
    assert store.tokens.tolist() == [0, 1, 2, 3, 4]
    assert not partial.exists()


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from datamodules.tokens import store

store.fcntl.flock = {flock}
folder, name = Path(sys.argv[1]), sys.argv[2]

def documents():
    print("begun", flush=True)
    for k in range(200):
        yield np.full(1000, 7)
        if k in (20, 150):
            sys.stdin.readline()

with store.locked(folder.with_name("s.lock")):
    made = store.write_store(folder, documents(), vocab_size=10, meta={{"by": name}})
print(made.num_tokens, made.meta["by"], flush=True)
"""
SILENT = "lambda handle, operation: None"
REFUSED = "lambda handle, operation: exec('raise OSError(store.errno.ENOSYS, chr(63))', {'store': store})"


@pytest.mark.parametrize("flock", [SILENT, REFUSED], ids=["that locks nothing", "that is missing"])
@pytest.mark.parametrize("first", [0, 1])
def test_two_builders_without_a_lock_leave_one_whole_store(tmp_path: Path, flock: str, first: int):
    """Both write at once; the one that ends second takes what the first one made."""
    folder = tmp_path / "s"
    (tmp_path / "s.elsewhere.1.0.partial").mkdir()  # of another machine, where nobody can ask whether it still runs
    code = BUILDER.format(flock=flock)
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("0", "1")
    ]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "begun\n"
    assert len(list(tmp_path.glob("s.*.partial"))) == 3
    assert not folder.exists()
    builders = builders if first == 0 else builders[::-1]
    said = [builder.communicate("\n\n")[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert said == [f"200000 {first}\n"] * 2
    store = TokenStore(folder)
    assert (np.asarray(store.tokens) == 7).all()
    assert store.lengths.tolist() == [1000] * 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]


def test_error_of_a_build_is_not_hidden_by_what_another_one_made(tmp_path: Path):
    def documents() -> Iterator[np.ndarray]:
        yield np.arange(5)
        write_store(tmp_path / "s", [np.arange(3)], vocab_size=10, meta={})
        raise ValueError("line 2 is bad")

    with pytest.raises(ValueError, match="line 2 is bad"):
        write_store(tmp_path / "s", documents(), vocab_size=10, meta={})
    assert TokenStore(tmp_path / "s").tokens.tolist() == [0, 1, 2]


def test_failure_of_the_disk_is_an_error_where_nobody_else_made_the_store(tmp_path: Path):
    def documents() -> Iterator[np.ndarray]:
        yield np.arange(5)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_store(tmp_path / "s", documents(), vocab_size=10, meta={})
    assert list(tmp_path.iterdir()) == []


def test_lock_is_free_again_after_an_error(tmp_path: Path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "lock"):
            raise KeyError
