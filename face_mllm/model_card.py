"""The model card of an artifact: what it is, what it is made of, how it was trained, its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from face_mllm.compose import Bases
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import ExpertBase
from face_mllm.references import resolve

EMBEDDED_LICENCES = {"embedded:smollm2": "apache-2.0", "embedded:face-clip": "apache-2.0"}
# settings that name places or this machine's doings rather than the training
NOT_SHOWN = {"kind", "stage", "data", "out", "init_from", "resume", "report_to", "workers"}
LIMITS = """Estimates about a face are not facts about a person: an expression is not a feeling, an
apparent age is not an age. Do not use this to identify, hire, police or diagnose anyone."""


def data_sources(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Source, protocol, licences and training faces of each source of a built dataset."""
    return [
        {
            "source": entry.get("source", "unknown"),
            "protocol": entry.get("protocol", ""),
            "licences": sorted(entry.get("licences") or {}),
            "faces": (entry.get("kept") or {}).get("train", 0),
        }
        for entry in manifest.get("sources") or ()
    ]


def base_licences(bases: Bases) -> dict[str, str]:
    """Licence of each base model, from its own model card; ``unstated`` where that says nothing."""
    return {reference: _licence(reference) for reference in (bases.vision, bases.llm)}


def _licence(reference: str) -> str:
    if reference in EMBEDDED_LICENCES:
        return EMBEDDED_LICENCES[reference]
    try:
        text = (resolve(reference) / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError, UserError):
        return "unstated"
    licence = front.get("license") if isinstance(front, dict) else None
    return str(licence or "unstated")


def model_card(
    bases: Bases,
    chain: list[dict[str, Any]],
    adapters: Iterable[str],
    expert: ExpertBase | None = None,
) -> str:
    """Markdown of the card.

    Args:
        bases: the models it stands on.
        chain: one entry per stage, as in ``stage.json``.
        adapters: parts with an adapter.
        expert: inside, where there is one.
    """
    last = chain[-1] if chain else {}
    sections = [
        _head(bases, last),
        _bases(bases, last, sorted(adapters)),
        _expert(expert),
        _stages(chain),
        _data(chain),
        _settings(chain),
        _speed(last),
        _versions(last),
        "## Use and limits\n\nLoad with `FaceMLLM.from_pretrained(folder)`.\n\n" + LIMITS,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _expert(expert: ExpertBase | None) -> str:
    if expert is None:
        return ""
    ways = [way for way in ("token", "text", "fusion") if getattr(expert, way)]
    said = f"; verdicts on training faces: {expert.verdicts}" if expert.verdicts else ""
    return f"Expert: {expert.kind} from `{expert.source}`, joined by {', '.join(ways)}{said}."


def _head(bases: Bases, last: Mapping[str, Any]) -> str:
    models = [
        ref for ref in (bases.llm, bases.vision) if "/" in ref and not Path(ref).is_absolute()
    ]
    front: dict[str, Any] = {
        "library_name": "face-mllm",
        "pipeline_tag": "image-text-to-text",
        "tags": ["face", "multimodal", "lora"],
    }
    if models:
        front["base_model"] = models
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# {last.get('stage', 'face_mllm')}"


def _bases(bases: Bases, last: Mapping[str, Any], adapters: list[str]) -> str:
    licences = last.get("licences") or {}
    packed = ", kept in NF4 (4 bits)" if bases.llm_quant == "nf4" else ""
    lines = [
        "## Models",
        "",
        "| part | model | licence |",
        "|---|---|---|",
        f"| vision tower | `{bases.vision}`, layer {bases.vision_layer} | "
        f"{licences.get(bases.vision, 'unstated')} |",
        f"| LLM | `{bases.llm}`{packed} | {licences.get(bases.llm, 'unstated')} |",
        "",
        f"Adapters on: {', '.join(adapters) or 'nothing'}.",
    ]
    return "\n".join(lines)


def _stages(chain: list[dict[str, Any]]) -> str:
    rows = [
        f"| {s['stage']} | {s['steps']} | {s['first_loss']:.3f} -> {s['last_loss']:.3f} |"
        for s in chain
    ]
    return "\n".join(
        ["## Stages", "", "| stage | steps | loss first -> last |", "|---|---|---|", *rows]
    )


def _data(chain: list[dict[str, Any]]) -> str:
    lines = ["## Data", "", "| stage | source | protocol | training faces | licence |"]
    lines.append("|---|---|---|---|---|")
    for entry in chain:
        sources = entry.get("sources") or [{"source": entry.get("data", "unknown")}]
        for found in sources:
            licences = ", ".join(found.get("licences") or ()) or "unstated"
            lines.append(
                f"| {entry['stage']} | {found['source']} | {found.get('protocol') or '-'} | "
                f"{found.get('faces', '-')} | {licences} |"
            )
    held = chain[-1].get("held_out") if chain else None
    lines += ["", f"Attributes held out of every stage: {', '.join(held or ()) or 'none'}."]
    return "\n".join(lines)


def _settings(chain: list[dict[str, Any]]) -> str:
    blocks = []
    for entry in chain:
        given = _told(entry.get("config") or {})
        text = yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100).rstrip()
        blocks.append(f"### {entry['stage']}\n\n```yaml\n{text}\n```")
    return "\n\n".join(["## Hyper-parameters", *blocks]) if blocks else ""


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that say something: none left out, no adapter's where none is."""
    told: dict[str, Any] = {}
    for key, value in config.items():
        if value is None or key in NOT_SHOWN or (key == "lora" and config.get("train") != "lora"):
            continue
        told[key] = _told(value) if isinstance(value, dict) else value
    return told


def _speed(last: Mapping[str, Any]) -> str:
    speed = last.get("speed")
    if not speed:
        return ""
    return (
        "## The last stage's run\n\n"
        f"{speed['questions']:,} questions about {speed['faces']:,} visits of faces in "
        f"{speed['seconds']:,.0f} s: {speed['questions_per_second']:,.1f} questions and "
        f"{speed['tokens_per_second']:,.0f} tokens a second, {speed['share_of_peak']:.0%} of the "
        f"{speed['peak_gflops']:,.0f} GFLOP/s measured for matrix products."
    )


def _versions(last: Mapping[str, Any]) -> str:
    versions = last.get("versions") or {}
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"## Versions\n\n{text}." if text else ""
