"""Peak memory of the chunked loss against the plain one, each in a process of its own: flat in T, or [T, V].

    python -m benchmarks.loss_memory

The peak is that of the process over what it held before the loss: hidden states, head and their gradients are counted,
interpreter and libraries are not.
"""

from __future__ import annotations

import resource
import subprocess
import sys

LENGTHS = (2048, 8192)
LOSSES = ("plain", "chunked")
H, V, CHUNK = 64, 16384, 512


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(loss: str, length: int) -> float:
    """Forward and backward of one loss; MiB by which the peak of this process rose."""
    import torch

    from lightning_modules.losses.chunked_cross_entropy import chunked_linear_cross_entropy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(V, H).mul_(0.02).requires_grad_()

    def run(tokens: int) -> None:
        hidden = torch.randn(tokens, H, requires_grad=True)
        targets = torch.randint(0, V, (tokens,))
        if loss == "chunked":
            total = chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=CHUNK).loss_sum
        else:
            total = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
        total.backward()

    run(8)  # libraries load what they need
    before = peak_mib()
    run(length)
    return peak_mib() - before


def main() -> None:
    if len(sys.argv) == 3:
        print(f"{one(sys.argv[1], int(sys.argv[2])):.1f}")
        return
    header = "".join(f"{'T=' + str(length):>10}" for length in LENGTHS)
    print(f"MiB of peak  {header}   H={H} V={V} chunk={CHUNK}")
    for loss in LOSSES:
        figures = []
        for length in LENGTHS:
            command = [sys.executable, "-m", "benchmarks.loss_memory", loss, str(length)]
            figures.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"{loss:<12} {''.join(f'{figure:10.1f}' for figure in figures)}")


if __name__ == "__main__":
    main()
