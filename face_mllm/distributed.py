"""Several processes as one: joining, work done once, work spread, errors everybody hears of.

``accelerate launch --config_file "$(python -m face_mllm.distributed zero3)" ...`` starts them; the
word behind the module names a shipped launch config and its path is printed.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, set_seed
from torch import distributed
from torch.distributed.fsdp import MixedPrecisionPolicy

from face_mllm.errors import UserError

T = TypeVar("T")
LOST_PEER = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "TCPStore")


def is_sharded(kind: str) -> bool:
    """Whether the launcher chose ``DEEPSPEED`` or ``FSDP``."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"


def plain_cpu() -> bool:
    """Whether accelerate has to be told to stay on the CPU; DeepSpeed finds out by itself."""
    return not torch.cuda.is_available() and not is_sharded("DEEPSPEED")


def backend() -> str | None:
    """``gloo`` for processes launched together on a machine without GPUs, else accelerate's."""
    return "gloo" if "LOCAL_RANK" in os.environ and not torch.cuda.is_available() else None


def join(deepspeed: Path | None = None, timeout: float = 1800) -> None:
    """Join the other processes of this launch; alone, nothing happens.

    Args:
        deepspeed: a DeepSpeed JSON of the user's own, in place of the launcher's choice.
        timeout: seconds a process waits for the others before it gives up.
    """
    if deepspeed is not None:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(deepspeed)
    if is_sharded("DEEPSPEED"):
        _need_deepspeed()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and not is_sharded("DEEPSPEED"):
        return
    PartialState(cpu=plain_cpu(), backend=backend(), timeout=timedelta(seconds=timeout))


def _need_deepspeed() -> None:
    try:
        from deepspeed import ops
    except ImportError as error:
        raise UserError(
            "the launch config asks for DeepSpeed, which is not installed",
            "pip install 'face-mllm[deepspeed]', or launch with accelerate/fsdp2 or accelerate/ddp",
        ) from error
    if not torch.cuda.is_available():  # gloo does without the operator it would compile at start
        ops.__compatible_ops__["deepspeed_shm_comm"] = False


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Every process's value, in order of the processes, on every process."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def on_main(action: Callable[[], T]) -> T:
    """Run ``action`` on process 0; all get its result or raise its error, so none waits for ever.

    The result must be picklable where there are several processes.
    """
    if world() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = _sendable(error)
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def spread(count: int, work: Callable[[int], T]) -> list[T]:
    """``[work(0), ..., work(count - 1)]``, each computed by one process and known to all."""
    mine: dict[int, T] = {}
    failure: Exception | None = None
    try:
        mine = {at: work(at) for at in range(rank(), count, world())}
    except Exception as error:
        if world() == 1:
            raise
        failure = _sendable(error)
    shares = gather((mine, failure))
    for _, told in shares:
        if told is not None:
            raise told
    everything = {at: found for share, _ in shares for at, found in share.items()}
    return [everything[at] for at in range(count)]


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, in place, without waiting for the device."""
    if world() > 1:
        distributed.all_reduce(value)
    return value


def seed_process(seed: int) -> None:
    """Seed this process apart from the others, or all would drop the same LoRA inputs."""
    set_seed(seed + rank())


@contextmanager
def peers_watched(kept: str) -> Iterator[None]:
    """Turn the error of a lost connection into words.

    Args:
        kept: what is left of the work, for the message.
    """
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        lost = isinstance(error, distributed.DistError) or any(
            word in str(error) for word in LOST_PEER
        )
        if world() == 1 or not lost:
            raise
        raise UserError(
            f"process {rank()} of {world()}: another process has died or hangs "
            f"({str(error).splitlines()[0][:120]})",
            f"see its own message; {kept}",
        ) from error


def adjust_fsdp(state: Any) -> bool:
    """Fit FSDP2 to this project; without it nothing happens.

    Autocast already computes in bf16, while FSDP's own casting would round the loss to three
    digits and trip over the fp32 buffers of a BatchNorm. And accelerate shards on accelerators
    only, though gloo does as well.

    Args:
        state: ``accelerator.state`` of an accelerator just made.

    Returns:
        Whether weights will be sharded by FSDP2.
    """
    if not is_sharded("FSDP") or world() == 1:
        return False
    if not torch.cuda.is_available():
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    return True


if __name__ == "__main__":
    from face_mllm.configio import find_config

    print(find_config(f"accelerate/{sys.argv[1]}"))
