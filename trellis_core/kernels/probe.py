"""The smallest kernel: does Triton compile and run here at all?"""

# pyright: reportIndexIssue=false
# Triton's kernels are launched as kernel[grid](...), which type checkers only know where Triton is installed.
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _count(out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, i)


def probe(device: torch.device) -> bool:
    """Compile and run it; raises whatever is in the way."""
    out = torch.zeros(16, dtype=torch.int32, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        _count[(1,)](out, 16)  # pyright: ignore[reportArgumentType]
    return out.tolist() == list(range(16))
