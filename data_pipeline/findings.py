"""What a check found: problems that make a dataset unfit, notes worth knowing, and their table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from data_pipeline.tables import rendered

MAX_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Args:
        kind: what sort of thing, such as ``duplicate``.
        where: the record or records.
        detail: what is wrong, in words.
        problem: True when it makes the dataset unfit.
    """

    kind: str
    where: str
    detail: str
    problem: bool = True


@dataclass
class Report:
    """What a check found.

    Args:
        faces: faces per split, of several datasets per split of each.
        findings: at most 20 of each kind.
        counts: every finding per kind, listed or not.
    """

    faces: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Count a finding and list it while there are few of its kind."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= MAX_LISTED:
            self.findings.append(finding)

    @property
    def problems(self) -> list[Finding]:
        """The findings that make the dataset unfit."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def text(self) -> str:
        """A table of the findings, problems first, and the verdict."""
        faces = ", ".join(f"{split} {count}" for split, count in self.faces.items())
        verdict = "nothing wrong" if self.ok else "something is wrong"
        parts = [_table(self)] if self.findings else []
        return rendered(*parts, f"faces: {faces}; {verdict}")

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", min_width=len("problem"))
    for name in ("what", "where", "detail"):
        table.add_column(name, overflow="fold")
    ordered = sorted(report.findings, key=lambda finding: (not finding.problem, finding.kind))
    for finding in ordered:
        style = "red" if finding.problem else "yellow"
        severity = Text("problem" if finding.problem else "note", style=style)
        kind = f"{finding.kind} ({report.counts[finding.kind]})"
        table.add_row(severity, *(Text(word) for word in (kind, finding.where, finding.detail)))
    return table
