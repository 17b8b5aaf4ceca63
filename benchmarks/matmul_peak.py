"""Matrix products of a training step as fast as this machine multiplies them: the measured peak.

    python benchmarks/matmul_peak.py [--tokens 672] [--device cuda] [--dtype bfloat16]

Times the forward and backward products of SmolLM2-135M's layers (and a large square one) on as many
threads as torch has, best of many, and prints one JSON line each; the last line is the peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

SMOLLM2 = ((576, 576), (576, 192), (576, 1536), (1536, 576))
SQUARE = (2048, 2048)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def seconds(work: Callable[[], object], device: str, budget: float = 0.4) -> float:
    """Shortest of many calls: of processor time on one CPU thread, else by the clock."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    best, end = float("inf"), time.perf_counter() + budget
    calls = 0
    while calls < 5 or time.perf_counter() < end:
        start = clock()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, clock() - start)
        calls += 1
    return best


def products(
    tokens: int, shape: tuple[int, int], dtype: torch.dtype, device: str, budget: float = 0.4
) -> tuple[float, float]:
    """Operations a second of ``x W'`` and of ``dy W``, the products of a frozen layer."""
    inner, outer = shape
    states = torch.randn(tokens, inner, dtype=dtype, device=device)
    weight = torch.randn(outer, inner, dtype=dtype, device=device)
    gradient = torch.randn(tokens, outer, dtype=dtype, device=device)
    work = 2 * tokens * inner * outer
    with torch.no_grad():
        forward = seconds(lambda: torch.nn.functional.linear(states, weight), device, budget)
        backward = seconds(lambda: gradient @ weight, device, budget)
    return work / forward, work / backward


def peak(
    tokens: int,
    shapes: tuple[tuple[int, int], ...] = (*SMOLLM2, SQUARE),
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    budget: float = 0.4,
) -> float:
    """Most operations a second that any of the products reaches."""
    return max(max(products(tokens, shape, dtype, device, budget)) for shape in shapes)


def machine(device: str = "cpu") -> str:
    """The machine in words: processor, its instruction sets, threads; or the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    known = {name.strip(): value.strip() for name, value in pairs}
    flags = [flag for flag in FLAGS if flag in known.get("flags", "").split()]
    name = known.get("model name", platform.machine())
    family = f"family {known.get('cpu family', '?')} model {known.get('model', '?')}"
    return f"{name} ({family}; {' '.join(flags)}), {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=672)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    best = 0.0
    print(json.dumps({"machine": machine(arguments.device), "torch": torch.__version__}))
    for shape in (*SMOLLM2, SQUARE):
        found = products(arguments.tokens, shape, dtype, arguments.device)
        best = max(best, *found)
        row = {"bench": "matmul_peak", "case": f"{arguments.tokens}x{shape[0]}x{shape[1]}"}
        rates = [round(rate / 1e9, 1) for rate in found]
        print(json.dumps({**row, "forward": rates[0], "backward": rates[1], "unit": "GFLOP/s"}))
    print(json.dumps({"bench": "matmul_peak", "case": "peak", "ours": round(best / 1e9, 1)}))


if __name__ == "__main__":
    main()
