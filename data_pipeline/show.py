"""``data show``: what a dataset looks like, on one page or in the terminal.

The loss falls on answers alone: in the sheet the underlined green text is what a model learns to
say (with the end-of-turn token after it), the rest is only read. With a tokenizer the sheet shows
the tokens themselves.
"""

from __future__ import annotations

import base64
import heapq
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data_pipeline.questions.forms import digest
from data_pipeline.records import (
    SPLITS,
    FaceRecord,
    count_faces,
    find_records,
    iter_rows,
    shards_of,
)
from data_pipeline.show_tokens import Tokens, default_tokenizer, load_tokens
from data_pipeline.tables import Progress, rendered
from face_mllm.errors import UserError
from face_mllm.outputs import check_file, write_whole

THUMB = 192
HIDDEN_LABELS = frozenset({"parameters", "landmarks"})
PAGE = Path(__file__).with_suffix(".html")


def sample_records(root: str | Path, n: int = 24, seed: int = 0) -> list[FaceRecord]:
    """Return ``n`` records of a dataset, the same for one seed, drawn over all splits.

    Args:
        root: dataset folder.
        n: how many; all when there are fewer.
        seed: of the draw.

    Raises:
        UserError: when the folder holds no faces.
    """
    root = Path(root)
    if not any(shards_of(root, split) for split in SPLITS):
        raise UserError(f"{root}: not a built dataset", "give the folder `data build` wrote")
    ids = (row["id"] for split in SPLITS for row in iter_rows(root, split, ["id"]))
    wanted = set(heapq.nsmallest(n, ids, key=lambda key: digest("show", seed, key)))
    return [record for split in SPLITS for record in find_records(root, split, wanted)]


def show_html(
    root: str | Path,
    out_html: str | Path,
    n: int = 24,
    seed: int = 0,
    tokenizer: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a contact sheet as one HTML file that needs no other: faces, labels, questions.

    Args:
        root: dataset folder.
        out_html: file to write.
        n: how many faces.
        seed: of the draw.
        tokenizer: whose tokens to show, see :func:`data_pipeline.show_tokens.load_tokens`;
            None shows the words alone.
        progress: called with (faces drawn, faces in all, what is going on).

    Returns:
        The path written.

    Raises:
        UserError: no faces in ``root``, a picture that cannot be read, or no such tokenizer.
    """
    out = Path(out_html)
    check_file(out)
    records = sample_records(root, n, seed)
    tokens = load_tokens(tokenizer) if tokenizer else None
    total = sum(count_faces(root, split) for split in SPLITS)
    views = []
    for number, record in enumerate(records, start=1):
        views.append(_view(record, tokens))
        if progress:
            progress(number, len(records), "faces")
    page = Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    html = page.render(
        title=f"{Path(root).name}: faces and questions",
        faces=len(records),
        total=total,
        tokenizer=tokens.reference if tokens else "",
        prefix=tokens.prefix() if tokens else (),
        splits=_in_order(record.split for record in records),
        sources=_in_order(record.source for record in records),
        tasks=_in_order(qa.task for record in records for qa in record.qa),
        records=views,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, html)
    return out


def show_terminal(root: str | Path, n: int = 4, seed: int = 0) -> str:
    """Return the same view as text for this terminal, without pictures."""
    return rendered(*(_panel(record) for record in sample_records(root, n, seed)))


def show(
    root: str | Path,
    html: str | Path | None = None,
    count: int = 12,
    tokenizer: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Return what to print: the faces as text, or the path of the contact sheet written.

    Raises:
        UserError: as :func:`show_html`.
    """
    if html is None:
        return show_terminal(root, count)
    chosen = tokenizer or default_tokenizer()
    return f"wrote {show_html(root, html, count, tokenizer=chosen, progress=progress)}"


def _in_order(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _view(record: FaceRecord, tokens: Tokens | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "source": record.source,
        "split": record.split,
        "licence": record.licence or "licence unstated",
        "caption": record.caption,
        "labels": list(label_lines(record)),
        "qa": [(qa, tokens.branch(qa) if tokens else ()) for qa in record.qa],
        "src": _thumbnail(record),
    }


def _thumbnail(record: FaceRecord) -> str:
    image = record.open_image()
    image.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def label_lines(record: FaceRecord) -> Iterable[tuple[str, str]]:
    """Yield (label, readable value) of the labels a person would look at."""
    for key, value in sorted(record.labels.items()):
        if key in HIDDEN_LABELS:
            continue
        if key == "attributes":
            yield key, ", ".join(name if flag else f"not {name}" for name, flag in value.items())
        elif isinstance(value, dict):
            yield key, ", ".join(f"{name} {_short(entry)}" for name, entry in value.items())
        else:
            yield key, _short(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _panel(record: FaceRecord) -> Panel:
    table = Table(box=None, pad_edge=False)
    for name in ("task", "name", "question", "answer (carries loss)", "weight"):
        table.add_column(name)
    for qa in record.qa:
        answer = Text(qa.answer, style="green underline")
        words = [Text(word) for word in (qa.task, qa.name, qa.question)]
        table.add_row(*words, answer, f"{qa.weight:.2f}")
    labels = (Text.assemble((key, "bold"), f" {value}") for key, value in label_lines(record))
    title = Text(f"{record.id} · {record.source} · {record.split}")
    return Panel(Group(*labels, table), title=title)
