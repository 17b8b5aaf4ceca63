"""The model card of a mask-FER artifact, written from what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from face_mllm.experts.mask_fer.expert import MaskFerExpert

KINDS = {
    "resnet": "a trained ResNet",
    "patch_head": "a light head on frozen patch tokens (a variant, not the paper's backbone)",
    "none": "nothing: the ablation x = F, a linear probe",
}


def model_card(expert: MaskFerExpert) -> str:
    """Return the README.md of the folder."""
    training, clip = expert.training, expert.shape.clip
    config, chosen = training["config"], training["chosen"]
    start = f", first weights {config['mask']['weights']}" if config["mask"]["weights"] else ""
    counts = zip(expert.classes, training["class_counts"], strict=True)
    lines = [
        "---",
        "library_name: face-mllm",
        "tags: [face, facial-expression-recognition]",
        "---",
        "# mask-FER",
        "",
        "Expressions from frozen CLIP features under a learned mask, after arXiv 2408.10614.",
        "",
        f"- Frozen: `{clip['model']}`, {clip['width']} channels, a reference with a fingerprint.",
        f"- Mask from {KINDS[config['mask']['kind']]}{start}.",
        f"- Classes in order: {', '.join(f'{name} ({count})' for name, count in counts)}; "
        f"{expert.model.channels} channels each.",
        f"- Trained on {training['faces']['train']} faces of `{training['data']}`, "
        f"{training['steps']} steps, {training['seconds']:.0f} s on {training['hardware']}.",
        f"- Kept: epoch {chosen['epoch']}, by {config['select']}; UAR {chosen['val_uar']:.3f} and "
        f"accuracy {chosen['val_war']:.3f} on {training['faces']['val']} validation faces. "
        "The test split was not opened.",
        f"- Answers come from: {expert.shape.logits_from}.",
        "",
        "Load with `MaskFerExpert.from_pretrained(folder)`. An estimate of an expression is not a",
        "fact about a person: do not use it to hire, police or diagnose anyone.",
    ]
    return "\n".join(lines) + "\n"
