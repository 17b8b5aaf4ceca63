"""Several processes over gloo on the CPU, as `accelerate launch` with a shipped config starts them.

The processes are forked from a server that has imported everything once, so a launch costs about a
second; the environment is the one accelerate's own launcher makes of the config.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from face_mllm.configio import find_config

PRELOAD = ["face_mllm.train", "eval.run", "sklearn.linear_model", "deepspeed"]
SECONDS = 180  # no job here takes half of it: a longer one hangs


def environment(mode: str, processes: int) -> dict[str, str]:
    """What `accelerate launch --config_file accelerate/MODE --num_processes N` sets."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    port = str(free_port())
    words = ["--config_file", str(find_config(f"accelerate/{mode}"))]
    words += ["--num_processes", str(processes), "--main_process_port", port, "-m", "face_mllm"]
    args, defaults, _ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(words)
    )
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        made = prepare_deepspeed_cmd_env(args)[1]
    else:
        made = prepare_multi_gpu_env(args)
    mine = {k: v for k, v in made.items() if k.startswith(("ACCELERATE_", "FSDP_"))}
    return mine | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Launch:
    """Processes under way.

    Args:
        mode: a shipped accelerate config; ``alone`` for one process without a launcher.
        processes: how many.
        job: function of the processes; a UserError is written to the log and exits with 2.
        log: folder for ``RANK.log``.
    """

    def __init__(self, mode: str, processes: int, job, *args, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        extra = {} if mode == "alone" else environment(mode, processes)
        log.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.processes = [
            context.Process(target=_main, args=(extra, rank, log / f"{rank}.log", job, args))
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int]:
        """Exit codes; whoever hangs is killed and fails the test."""
        for process in self.processes:
            process.join(SECONDS)
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"hangs:\n{self.text()}"
        return [process.exitcode for process in self.processes]

    def done(self) -> Launch:
        """Wait and insist that all went well."""
        codes = self.wait()
        assert codes == [0] * len(codes), f"exit codes {codes}:\n{self.text()}"
        return self

    def text(self) -> str:
        """What the processes said."""
        return "\n".join(path.read_text() for path in sorted(self.log.glob("*.log")))


def _main(extra: dict[str, str], rank: int, log: Path, job, args) -> None:
    os.environ.update(extra)
    if extra:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from face_mllm.errors import UserError

    faulthandler.dump_traceback_later(SECONDS - 10)  # says where a hanging one hangs
    print("preloaded:", [name for name in ("deepspeed", "eval.run") if name in sys.modules])
    code = 0
    try:
        job(*args)
    except UserError as error:
        print(f"error: {error}", flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # as a launcher's child ends; nothing of the server's is torn down


def kill_me() -> None:
    """What the kernel's out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)
