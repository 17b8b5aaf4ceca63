"""What this machine can do: device, number format, threads, memory, each with its reason."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from face_mllm.errors import UserError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
MOST_WORKERS = 4  # of one training process


@dataclass(frozen=True)
class Hardware:
    """Device and dtype a run uses.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``bfloat16`` or ``float32``.
        reason: why, in words a user can act on.
        threads: CPU threads this process may use.
        memory_bytes: memory this process may use on the host.
    """

    device: str
    dtype: str
    reason: str
    threads: int
    memory_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        import torch

        return getattr(torch, self.dtype)

    @property
    def autocast(self) -> bool:
        """Whether matrix products run in bf16 while trained weights stay fp32."""
        return self.dtype == "bfloat16"

    def describe(self) -> str:
        """One line for the log."""
        gib = self.memory_bytes / 2**30
        return f"{self.device}, {self.dtype} ({self.reason}), {self.threads} threads, {gib:.1f} GiB"


def choose_hardware(
    device: str | None = None, dtype: str | None = None, threads: int | None = None
) -> Hardware:
    """Choose device, dtype and threads; what is given is kept, the rest follows the machine.

    bf16 on a CPU is taken only where the processor multiplies it natively (AVX512_BF16, AMX):
    there it is about four times fp32, elsewhere it is emulated and slower than fp32.

    Args:
        device: overrides ``FACE_MLLM_DEVICE``, which overrides the machine's best.
        dtype: overrides ``FACE_MLLM_DTYPE`` likewise.
        threads: overrides :func:`usable_cpus`.

    Raises:
        UserError: a device this machine does not have, or another dtype.
    """
    device = device or os.environ.get("FACE_MLLM_DEVICE") or best_device()
    _check_device(device)
    wanted = dtype or os.environ.get("FACE_MLLM_DTYPE")
    if wanted and wanted not in ("bfloat16", "float32"):
        raise UserError(f"dtype {wanted!r} is not one of bfloat16, float32", "choose one of them")
    best, reason = best_dtype(device)
    if wanted:
        best, reason = wanted, "asked for" if wanted == best else f"asked for, against: {reason}"
    return Hardware(device, best, reason, threads or usable_cpus(), usable_memory())


def for_precision(precision: str) -> Hardware:
    """:func:`choose_hardware` for a stage config's ``precision``: auto, bf16 or fp32."""
    names = {"auto": None, "bf16": "bfloat16", "fp32": "float32"}
    if precision not in names:
        raise UserError(f"unknown precision {precision!r}", "choose auto, bf16 or fp32")
    return choose_hardware(dtype=names[precision])


def best_device() -> str:
    """``cuda`` if there is one, else ``mps`` on Apple silicon, else ``cpu``."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_device(device: str) -> None:
    import torch

    kind, _, index = device.partition(":")
    have = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if kind not in have or (index and not index.isdigit()):
        raise UserError(f"device {device!r} is not known", "choose cpu, cuda, cuda:N or mps")
    if int(index or 0) >= int(have[kind]):
        raise UserError(f"device {device!r} is not on this machine", f"use {best_device()}")


def best_dtype(device: str) -> tuple[str, str]:
    """Return (dtype name, reason) for a device."""
    import torch

    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        # emulation is slower than fp32, so only native support counts
        if torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip:
            return "bfloat16", f"{name} computes it natively"
        return "float32", f"{name} has no native bf16"
    if device == "mps":
        return "float32", "the safe choice on Apple GPUs"
    features = cpu_bf16_features()
    if features:
        return "bfloat16", f"the CPU has {' and '.join(features)}: about 4x fp32"
    return "float32", "the CPU has neither AVX512_BF16 nor AMX, so bf16 would be emulated"


def cpu_bf16_features() -> list[str]:
    """Names of the instruction sets with which this CPU multiplies bf16 natively."""
    import torch

    probes = {"AVX512_BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    found = [name for name, probe in probes.items() if getattr(torch.cpu, probe, bool)()]
    if platform.machine() in ("arm64", "aarch64") and _arm_bf16():
        found.append("Arm BF16")
    return found


def _arm_bf16() -> bool:
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def usable_cpus() -> int:
    """CPUs this process may use: the least of affinity, cgroup quota and ``OMP_NUM_THREADS``."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    cpus = _own_cpus()
    return min(cpus, int(wanted)) if wanted.isdigit() and int(wanted) else cpus


def _own_cpus() -> int:
    """CPUs that affinity and cgroup leave, however many threads a product may take."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cpus, _cgroup_cpus() or cpus))


@contextmanager
def lent(module: torch.nn.Module, device: torch.device | str) -> Iterator[None]:
    """Have a module on the run's device for a while: FSDP and DeepSpeed leave it on the host.

    Until training begins, that is; a tower or a check before it would run on the CPU.
    """
    import torch

    before, wanted = next(module.parameters()).device, torch.device(device)
    if before.type == wanted.type:
        yield
        return
    module.to(wanted)
    try:
        yield
    finally:
        module.to(before)


def data_workers(wanted: int | None, device: str) -> int:
    """Data-loading processes: those asked for, else as many as keep an accelerator fed.

    A GPU's step takes less time than its pictures, so they are made meanwhile; on a CPU the step
    itself needs every core.
    """
    if wanted is not None:
        return wanted
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # launched on this machine together
    return 0 if device == "cpu" else max(0, min(MOST_WORKERS, _own_cpus() // local - 1))


def _cgroup_cpus() -> int | None:
    quota = _read(CGROUP / "cpu.max").split()  # cgroup v2: "200000 100000" or "max 100000"
    if not quota:
        quota = [_read(CGROUP / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(quota) != 2 or not all(part.isdigit() for part in quota) or quota[1] == "0":
        return None
    return max(1, math.ceil(int(quota[0]) / int(quota[1])))


def usable_memory() -> int:
    """Bytes of memory this process may still take: the least of free memory and cgroup limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit, used in (
        (CGROUP / "memory.max", CGROUP / "memory.current"),
        (CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes"),
    ):
        most, now = _read(limit), _read(used)
        if most.isdigit():
            available = min(available, max(0, int(most) - int(now or 0)))
    return available


def release_memory() -> None:
    """Give freed memory back to the system, which glibc would keep after a model is dropped."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc only
        trim(0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
