"""What many document lengths cost on a CPU: `python -m benchmarks.attention_shapes`.

oneDNN compiles a kernel for every shape it meets and keeps it. Each row runs in a process of its own: one causal
attention call, forward and backward in bf16, for each of 200 random document lengths of 20 to 500 tokens, as they are
or rounded up as `DocumentLayout` does; the first time, and once more.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from lightning_modules.attention.layout import padded_lengths


def measure(rounded: bool) -> None:
    lengths = torch.randint(20, 500, (200,), generator=torch.Generator().manual_seed(0))
    for times in ("first", "again"):
        begun = time.perf_counter()
        for length in (padded_lengths(lengths) if rounded else lengths).tolist():
            shapes = ((1, 4, length, 64), (1, 2, length, 64), (1, 2, length, 64))
            query, key, value = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes)
            F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()
        milliseconds = (time.perf_counter() - begun) / len(lengths) * 1e3
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{'rounded' if rounded else 'as they are':<12}{times:<8}{milliseconds:>10.2f}{peak:>12.0f}", flush=True)


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1] == "rounded")
        return
    print(f"{'lengths':<12}{'run':<8}{'ms a call':>10}{'peak MiB':>12}", flush=True)
    for kind in ("as-they-are", "rounded"):
        subprocess.run([sys.executable, "-m", "benchmarks.attention_shapes", kind], check=True)


if __name__ == "__main__":
    main()
