"""One run, one folder: `outputs/<recipe>/<run id>/`, and `latest` beside it.

    config.yaml  run.json  log.txt  metrics.json  tensorboard/  checkpoints/  figures/  export/

`run.json` says which recipe it is, whether it is finished, and with which versions. Two runs never share a folder, and
two processes never write one: a run holds a lock on its folder as long as it lives. `run_folder=…` puts a run
elsewhere, and a later one of other settings beside it, under the same name with a number.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from lightning_modules.checkpointing import newest_checkpoint

RANK_VARIABLE = "LONG_CONTEXT_RECIPES_RUN"
"""Tells the processes that Lightning starts for further ranks which folder the first one opened."""

PRACTICAL_KEYS = (
    "resume",
    "checkpoint",
    "output_dir",
    "run_folder",
    "cache_dir",
    "evaluation",
    "export",
    "prepare",
    "about",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.num_threads",
    "trainer.log_every_n_steps",
    "trainer.checkpoint_every_n_steps",
    "trainer.keep_checkpoints",
    "trainer.progress_bar",
    "trainer.sample_answers",
    "strategy",
)
"""Keys that do not change what is trained; a run may be resumed with others."""

WEIGHT_KEYS = ("model.", "rope.", "peft.", "context_length")
"""What a checkpoint's weights belong to; reading them under other keys gives a broken model without an error."""

READ_WHOLE, NUM_SLICES, SLICE_BYTES = 2**28, 4096, 2**14
"""Of files that tell a base model from another."""

_held_locks: list[IO[str]] = []


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and the checkpoint it goes on from."""

    path: Path
    checkpoint: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def info(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    @property
    def tokens(self) -> int:
        """Tokens that a finished run was trained on, padding not among them."""
        info = self.info()
        if "tokens" in info:
            return int(info["tokens"])
        return int(info.get("steps", 0) * info["mechanism"]["data.tokens_per_step"])  # of a run of an earlier version

    def update(self, **facts: Any) -> None:
        """Write facts into `run.json`, whole or not at all."""
        file = self.path / "run.json"
        known = self.info() if file.exists() else {}
        partial = file.with_name(".run.json.partial")
        partial.write_text(json.dumps({**known, **facts}, indent=2), encoding="utf-8")
        partial.replace(file)


def open_run(config: DictConfig) -> RunFolder:
    """A new run's folder, or an earlier one's to go on with, as `resume` says.

    Raises:
        ValueError: `resume` names a checkpoint of another recipe or of other settings, or one that is not there.
    """
    if handed_down := os.environ.get(RANK_VARIABLE):
        path = Path(handed_down)
        return RunFolder(path, newest_checkpoint(path / "checkpoints") if (path / "resumed").exists() else None)
    run = _resumed(config) or _new(config)
    os.environ[RANK_VARIABLE] = str(run.path)
    marker = run.path / "resumed"
    if run.checkpoint is not None:
        marker.touch()
    else:
        marker.unlink(missing_ok=True)
    return run


def close_run(run: RunFolder, *, status: str) -> None:
    """Note how the run ended and let its folder go."""
    run.update(status=status)
    _release()


@contextmanager
def released_on_error() -> Iterator[None]:
    """Let an open run go when what is done in it fails, so that the same process can open another.

    The traceback goes into the run's log: the user may see one sentence of it, which need not be about their mistake.
    """
    try:
        yield
    except BaseException as error:
        folder = os.environ.get(RANK_VARIABLE)
        if isinstance(error, Exception) and folder:
            with suppress(OSError), (Path(folder) / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {traceback.format_exc()}")
        _release()
        raise


def _release() -> None:
    os.environ.pop(RANK_VARIABLE, None)
    while _held_locks:
        _held_locks.pop().close()


def named_run(config: DictConfig) -> RunFolder | None:
    """The run that `resume` names by a path, if it does; asked before hours of preparing data, as nothing is opened.

    Raises:
        ValueError: `resume` names a checkpoint of another recipe or of other settings, or one that is not there.
    """
    if config.resume in ("auto", "never"):
        return None
    run = _of_path(Path(config.resume), "resume")
    _refuse_other(run, config, "resume")
    return run


def find_run(config: DictConfig) -> RunFolder:
    """The run that `checkpoint` means, or the newest finished one of the recipe.

    Raises:
        ValueError: There is none.
    """
    if config.checkpoint is not None:
        run = _of_path(Path(config.checkpoint), "checkpoint")
        _refuse_other(run, config, "checkpoint", WEIGHT_KEYS)
        return run
    for path in _runs(config):
        run = RunFolder(path, newest_checkpoint(path / "checkpoints"))
        fits = not _differing(run, config, WEIGHT_KEYS)
        if run.checkpoint is not None and run.info()["status"] == "finished" and fits:
            return run
    raise ValueError(
        f"no finished run of recipe={config.recipe_name} with these settings under {config.output_dir};"
        f" train it first with python -m recipes.train recipe={config.recipe_name}, or set checkpoint"
    )


def finished_run(config: DictConfig) -> RunFolder | None:
    """The newest run of exactly these settings and this base model, if it is finished."""
    for path in _runs(config):
        run = RunFolder(path, newest_checkpoint(path / "checkpoints"))
        if _is_same(run, config):
            return run if run.info()["status"] == "finished" and run.checkpoint is not None else None
    return None


def base_fingerprint(config: DictConfig) -> str | None:
    """Tells a base model in a folder from another that takes its place; None for a hub name or a model from scratch.

    Reads files of up to 256 MiB whole, and of larger ones 64 MiB in slices all over them, so that a checkpoint of 100
    GB is done in seconds and another tensor of a few megabytes is seen.
    """
    folder = Path(str(OmegaConf.select(config, "model.source.name_or_path"))).expanduser()
    if not (folder / "config.json").is_file():
        return None
    found = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        size = file.stat().st_size
        found.update(f"{file.name} {size} ".encode())
        whole = size <= READ_WHOLE
        with file.open("rb") as handle:
            for k in range(1 if whole else NUM_SLICES):
                handle.seek(k * (size - SLICE_BYTES) // (NUM_SLICES - 1) if k else 0)
                found.update(handle.read(size if whole else SLICE_BYTES))
    return found.hexdigest()


def mechanism(config: DictConfig) -> dict[str, Any]:
    """What a run trains, as flat keys: the configuration without what is merely practical."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if prefix in PRACTICAL_KEYS:
            return
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    walk(OmegaConf.to_container(config, resolve=False), "")
    return flat


def _resumed(config: DictConfig) -> RunFolder | None:
    if config.resume == "never":
        return None
    if config.resume != "auto":
        run = named_run(config)
        assert run is not None
        if not _lock(run.path):
            raise ValueError(f"run {run.path} is being trained by another process; wait for it, or set resume=never")
        return run
    for path in _runs(config):
        run = RunFolder(path, newest_checkpoint(path / "checkpoints"))
        if not _is_same(run, config):
            continue
        # The newest of the same settings decides; one that came before a finished one was left behind on purpose.
        if run.info()["status"] == "finished":
            return None
        if run.checkpoint is None:
            return run if config.run_folder is not None and _lock(path) else None
        if not _lock(path):
            print(f"{path} is being trained by another process; starting a run of its own")
            return None
        print(f"going on with {path} from {run.checkpoint.name} (resume=never starts anew)")
        return run
    return None


def _new(config: DictConfig) -> RunFolder:
    if config.run_folder is not None:
        parent, name = Path(config.run_folder).parent, Path(config.run_folder).name
    else:
        parent, name = Path(config.output_dir) / config.recipe_name, datetime.now().strftime("%Y%m%d-%H%M%S")
    path = new_folder(parent, name)
    _lock(path)
    run = RunFolder(path)
    run.figures.mkdir()
    run.checkpoints.mkdir()
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    facts = {"mechanism": _plain(mechanism(config)), "base_model": base_fingerprint(config), **versions()}
    run.update(recipe=config.recipe_name, status="started", **facts)
    if config.run_folder is None:
        point_latest(parent, path)
    return run


def _of_path(path: Path, key: str) -> RunFolder:
    """The run of a run folder, of its `checkpoints/` entry, or of its `latest` link."""
    if (path / "run.json").is_file():
        checkpoint = newest_checkpoint(path / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{key}={path} has no complete checkpoint; set {key} to another run")
        return RunFolder(path.resolve(), checkpoint.resolve())
    if path.exists() and (path.parent.parent / "run.json").is_file():
        return RunFolder(path.resolve().parent.parent, path.resolve())
    raise ValueError(f"{key}={path} is neither a run folder nor a checkpoint in one")


def _refuse_other(run: RunFolder, config: DictConfig, key: str, among: tuple[str, ...] | None = None) -> None:
    theirs = run.info()["recipe"]
    if theirs != config.recipe_name:
        raise ValueError(f"{key}={config[key]} is a run of recipe={theirs}, not of recipe={config.recipe_name}")
    if differing := _differing(run, config, among):
        raise ValueError(f"{key}={config[key]} was trained with other settings: {'; '.join(differing)}")


def _is_same(run: RunFolder, config: DictConfig) -> bool:
    """Whether a run has these settings and began with the base model that is there now."""
    info = run.info()
    if info["mechanism"] != _plain(mechanism(config)):
        return False
    base = info.get("base_model")  # not noted by older runs
    return base is None or base == base_fingerprint(config)


def _differing(run: RunFolder, config: DictConfig, among: tuple[str, ...] | None = None) -> list[str]:
    """The keys (below `among`, or all) that this configuration has otherwise than a run."""
    theirs, ours = run.info()["mechanism"], _plain(mechanism(config))
    return [
        f"{key}={ours.get(key)} (the run has {theirs.get(key)})"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and (among is None or key.startswith(among))
    ]


def _runs(config: DictConfig) -> list[Path]:
    """Run folders of a recipe, or of the name that `run_folder` gives, newest first."""
    if config.run_folder is not None:
        first = Path(config.run_folder)
        numbered = [path for path in first.parent.glob(f"{first.name}-*") if path.name[len(first.name) + 1 :].isdigit()]
        numbered.sort(key=lambda path: int(path.name[len(first.name) + 1 :]), reverse=True)
        return [path for path in (*numbered, first) if (path / "run.json").is_file()]
    parent = Path(config.output_dir) / config.recipe_name
    return sorted((p.parent for p in parent.glob("*/run.json") if not p.parent.is_symlink()), reverse=True)


def lock_folder(path: Path) -> IO[str] | None:
    """Hold a folder for this process as long as the handle is open; None where another process holds it."""
    handle = (path / ".lock").open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    # A forked loader worker outlives a killed trainer by seconds, and would hold the lock for it.
    os.register_at_fork(after_in_child=handle.close)
    return handle


def new_folder(parent: Path, name: str) -> Path:
    """Make a folder of this name, or of it and a number where that is taken.

    Raises:
        ValueError: There can be none, as where a link above it leads nowhere.
    """
    path, number = parent / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if not os.path.lexists(path):
                raise ValueError(f"{error.filename} is in the way of the folder {path}; set output_dir") from error
            number += 1
            path = parent / f"{name}-{number}"


def _lock(path: Path) -> bool:
    if (handle := lock_folder(path)) is None:
        return False
    _held_locks.append(handle)
    return True


def point_latest(parent: Path, path: Path) -> None:
    """Let the link `latest` in a folder lead to one of its folders, at once."""
    link = parent / ".latest.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(parent / "latest")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def versions() -> dict[str, Any]:
    """Of the packages that a result depends on, and the commit."""
    packages = ("torch", "lightning", "transformers", "tokenizers", "datasets", "long-context-recipes")
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    commit = None
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {"versions": found, "commit": commit}
