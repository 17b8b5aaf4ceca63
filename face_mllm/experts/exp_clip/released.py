"""A released checkpoint as an expert folder, so that a multimodal LLM can be joined with it."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.records import whole_folder
from face_mllm.experts.exp_clip.artifact import description, load_exp_clip, write_head
from face_mllm.outputs import check_out


def adopt(model: Path, clip: str, out: Path, paper_preprocess: bool = True) -> Path:
    """Write the folder ``exp-clip train`` would have written of a head trained elsewhere.

    Args:
        model: checkpoint with ``mlp.weight``.
        clip: reference of the CLIP it was trained on; its fingerprint is kept.
        out: folder to write.
        paper_preprocess: the released heads saw pictures without mean and std.

    Raises:
        UserError: no such checkpoint, a CLIP of another width, or ``out`` in use.
    """
    check_out(out)
    expert = load_exp_clip(model, clip, paper_preprocess)
    info = description(expert.head, clip, expert.clip.fingerprint, paper_preprocess)
    with whole_folder(out) as folder:
        write_head(folder, expert.head, info | {"released": model.name})
        (folder / "README.md").write_text(
            f"# Exp-CLIP head\n\nTaken from the checkpoint `{model.name}`: one bias-free linear "
            f"layer ({expert.head.clip_width} -> {expert.head.teacher_width}) on the frozen CLIP "
            f"`{clip}`, after Zhao et al., arXiv 2405.19100. Estimates about a face are not facts "
            "about a person: do not use them to identify, hire, police or diagnose anyone.\n"
        )
    return out
