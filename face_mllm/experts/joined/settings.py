"""What a stage says of its expert, and what the artifact keeps of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from face_mllm.configio import Strict

Training = Literal["frozen", "full"]
HEAD_PART = "expert_head"  # the expert's own head, while it trains along
LOSS_WEIGHT = 0.1
AUTO, IN_SAMPLE, UNSEEN, OUT_OF_FOLD = "auto", "in_sample", "unseen", "out_of_fold"


class ExpertSettings(Strict):
    """The expert of a stage; what is None is inherited, and off where there is nothing before."""

    model: str | None = Field(None, description="folder of `mask-fer train` or `exp-clip train`")
    token: bool | None = Field(None, description="its vector as a token after the image tokens")
    text: bool | None = Field(None, description="its verdict as words in the prompt")
    fusion: bool | None = Field(
        None, description="fit late fusion and calibration on the val split after training"
    )
    train: Training = Field("full", description="the token's projector")
    hidden: int = Field(0, ge=0, description="inner width of a new projector; 0: the LLM's")
    learning_rate: float | None = Field(None, gt=0, description="None takes the stage's")
    head: Training = Field(
        "frozen", description="full trains the expert's own head along, its CLIP stays frozen"
    )
    head_learning_rate: float = Field(
        2e-5, gt=0, description="of that head, which knows its trade already"
    )
    loss_weight: float = Field(
        LOSS_WEIGHT, gt=0, description="of the expert's own loss on labelled faces, with head: full"
    )
    verdicts: str = Field(
        AUTO,
        description="of training faces: a file of `mask-fer verdicts` (out of fold); in_sample "
        "lets an expert speak of faces it was trained on; auto refuses that",
    )
    most: int | None = Field(None, ge=1, description="classes a verdict names; None: 2")
    prompt_type: int | None = Field(
        None, ge=1, le=5, description="of an Exp-CLIP expert's verdicts; None: 5"
    )
    classes: Literal[7, 8, 11] | None = Field(
        None, description="expressions an Exp-CLIP expert tells apart (8: with contempt); None: 7"
    )
    fusion_faces: int = Field(2000, ge=1, description="val faces the fusion is fitted on, at most")

    @model_validator(mode="after")
    def _fits(self) -> ExpertSettings:
        if self.head == "full" and self.text:
            raise ValueError("expert.text needs head: frozen, or what it says would change")
        if self.loss_weight != LOSS_WEIGHT and self.head != "full":
            raise ValueError("expert.loss_weight needs head: full, or nothing learns from it")
        return self


@dataclass(frozen=True)
class ExpertBase:
    """What ``stage.json`` says of the expert inside an artifact.

    Attributes:
        kind: ``mask_fer`` or ``exp_clip``.
        source: the folder it was taken from.
        token, text, fusion: how it is joined.
        hidden: inner width of the token's projector.
        most: classes a verdict names.
        prompt_type: of Exp-CLIP's class logits.
        classes: expressions an Exp-CLIP tells apart; a mask-FER has its own.
        verdicts: where those of the training faces came from: ``unseen`` by the expert,
            ``in_sample``, ``out_of_fold``, or empty without text.
        trained_along: whether a stage trained its head, on labels of that stage's faces.
    """

    kind: str
    source: str
    token: bool = False
    text: bool = False
    fusion: bool = False
    hidden: int = 0
    most: int = 2
    prompt_type: int = 5
    classes: int = 7
    verdicts: str = ""
    trained_along: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for ``stage.json``."""
        return asdict(self)


def expert_trainings(model: Any, settings: ExpertSettings | None) -> dict[str, Training]:
    """Lines of the freeze table for the parts a joined expert has in the model."""
    settings = settings or ExpertSettings()
    parts: dict[str, Training] = {"expert": settings.train, HEAD_PART: settings.head}
    return {part: parts[part] for part in parts if getattr(model, part) is not None}


def expert_rates(settings: ExpertSettings | None, stage: float) -> dict[str, float]:
    """Learning rates of those parts; ``stage`` is the stage's own."""
    settings = settings or ExpertSettings()
    own = settings.learning_rate
    return {"expert": stage if own is None else own, HEAD_PART: settings.head_learning_rate}
