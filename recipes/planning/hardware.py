"""What a device can hold and how fast it is, as conf/hardware says it; this machine's own memory is read from it."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, fields
from typing import Any

from recipes.compose import ConfigError, conf_folder, options

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device and the node that it stands in.

    Attributes:
        name: Of the file.
        memory_gib: Of one device, that programs can have.
        host_memory_gib: Of a node.
        devices_per_node: Devices of a node.
        matmul_tflops: Peak of bf16 products; None where it is not known.
        matmul_reached: The least and the most of it that training is assumed to reach.
        attention_forward_tflops: Of the kernels that attention runs with; None where not known.
        attention_backward_tflops: Likewise.
        attention_reached: Least and most, likewise.
        memory_gb_per_s: To the device's own memory.
        memory_reached: Least and most, likewise.
        interconnect_gb_per_s: Between devices of a node, in one direction.
        network_gb_per_s: Between nodes, for each device.
        host_gb_per_s: To the host's memory, in one direction.
        price_per_hour: Of one device; None where nobody said.
    """

    name: str
    memory_gib: float
    host_memory_gib: float
    devices_per_node: int
    matmul_tflops: float | None
    matmul_reached: tuple[float, float]
    attention_forward_tflops: float | None
    attention_backward_tflops: float | None
    attention_reached: tuple[float, float]
    memory_gb_per_s: float | None
    memory_reached: tuple[float, float]
    interconnect_gb_per_s: float | None
    network_gb_per_s: float | None
    host_gb_per_s: float | None
    price_per_hour: float | None

    @property
    def on_gpu(self) -> bool:
        return self.name != "cpu"


def read_hardware(name: str) -> Hardware:
    """The option of conf/hardware of this name.

    Raises:
        ConfigError: There is none, or its file lacks a key.
    """
    known = options("hardware")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        allowed = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
        raise ConfigError(f"hardware={name} does not exist; {allowed}")
    import yaml

    file = conf_folder() / "hardware" / f"{name}.yaml"
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    wanted = {field.name for field in fields(Hardware)} - {"name"}
    if differing := sorted(wanted ^ set(written)):
        raise ConfigError(f"{file}: {', '.join(differing)} must be there, and no other key")
    for key in ("memory_gib", "host_memory_gib"):
        written[key] = this_machine_gib() if written[key] is None else written[key]
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    return Hardware(name=name, **values)


def this_machine_gib() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
