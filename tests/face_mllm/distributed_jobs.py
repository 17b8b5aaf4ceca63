"""What the processes of the distributed tests do; importable by each of them."""

from __future__ import annotations

import os

from launching import kill_me

from face_mllm.config import StageConfig


def train(settings: dict, kill: tuple[int, int] | None = None) -> None:
    """Train a stage; ``kill`` = (rank, step) dies there as if the machine had."""
    from face_mllm.train import train as run

    if kill and int(os.environ.get("RANK", "0")) == kill[0]:
        from transformers import TrainerCallback

        from face_mllm import train as module

        class Killer(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if state.global_step == kill[1]:
                    kill_me()

        built = module.build_trainer

        def build(*args):
            trainer = built(*args)
            trainer.add_callback(Killer())
            return trainer

        module.build_trainer = build
    run(StageConfig.model_validate(settings))
