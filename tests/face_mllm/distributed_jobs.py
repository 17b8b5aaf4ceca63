"""What the processes of the distributed tests do; importable by each of them."""

from __future__ import annotations

import os
from collections.abc import Callable

from launching import kill_me
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from face_mllm.config import StageConfig
from face_mllm.model import blocks, heads, lora


def train(settings: dict, mishap: str = "", rank: int = 0, step: int = 0) -> None:
    """Train a stage; a mishap befalls one process at a step."""
    from face_mllm import train as module

    prepare: Callable = MISHAPS[mishap] if int(os.environ.get("RANK", "0")) == rank else MISHAPS[""]
    built = module.build_trainer

    def build(*args):
        trainer = built(*args)
        trainer.add_callback(Told(trainer))
        prepare(trainer, step)
        return trainer

    module.build_trainer = build
    module.train(StageConfig.model_validate(settings))


def train_in_chunks(settings: dict) -> None:
    """Train with room for the logits of five label rows."""
    heads.LOGITS = 5 * 400
    train(settings)


class Told(TrainerCallback):
    """Says how the weights are split, so that a mode which splits nothing fails its test.

    And which of the fast ways of a CPU a step took, so that none is left out unseen.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.fast = set()
        for name, function in (("blocks", blocks._BlockAttention), ("lora", lora._LoraLinear)):
            function.forward = staticmethod(self._noted(name, function.forward))

    def _noted(self, name, forward):
        def noted(*args):
            self.fast.add(name)
            return forward(*args)

        return noted

    def on_step_end(self, args, state, control, **_):
        print("fast:", sorted(self.fast), flush=True)

    def on_train_begin(self, args, state, control, **_):
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        weight = model.projector[0].weight
        ways = {
            "zero3": hasattr(weight, "ds_id"),
            "zero2": hasattr(weight, "_hp_mapping"),
            "fsdp2": isinstance(weight, DTensor),
        }
        print("split:", [name for name, split in ways.items() if split], flush=True)


def _at(step: int, act: Callable) -> TrainerCallback:
    class At(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == step:
                act()

    return At()


def killed(trainer, step):
    """Dies after the step as if the kernel had killed it."""
    trainer.add_callback(_at(step, kill_me))


def killed_while_saving(trainer, step):
    """Dies when the checkpoint's files are written but not yet under its name."""
    from face_mllm import checkpoints

    sealed = checkpoints._seal

    def seal(folder):
        sealed(folder)
        if trainer.state.global_step == step:
            kill_me()

    checkpoints._seal = seal


def full_disk(trainer, step):
    """The checkpoint of the step meets the kernel's own ENOSPC."""
    from face_mllm import trainer as module

    written = module.save_file

    def save(tensors, path):
        written(tensors, path)
        if trainer.state.global_step == step:
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(path.read_bytes())

    module.save_file = save


def nan_loss(trainer, step):
    """A weight of this process alone overflows before the step."""

    def spoil():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(float("nan"))

    trainer.add_callback(_at(step - 1, spoil))


MISHAPS: dict[str, Callable] = {
    "": lambda trainer, step: None,
    "killed": killed,
    "killed_while_saving": killed_while_saving,
    "full_disk": full_disk,
    "nan_loss": nan_loss,
}


def evaluate(model: str, data: str, out: str) -> None:
    """``face-mllm eval`` of one task with both scorers and all baselines."""
    from eval.run import evaluate as run

    run(model, data, out, tasks=["expression"], scorer="both")


def refuse(rank: int) -> None:
    """Work that fails on one process only, in each of the two ways of sharing it."""
    from face_mllm import distributed
    from face_mllm.errors import UserError

    distributed.join()

    def work(at: int) -> int:
        if distributed.rank() == rank:
            raise UserError(f"face {at} is broken")
        return at

    distributed.spread(4, work)
