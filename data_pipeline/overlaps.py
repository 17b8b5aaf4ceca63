"""Known overlaps: sources that share pictures or people by their making, whatever a hash sees."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from data_pipeline.findings import Finding
from data_pipeline.manifest import protocols_of
from data_pipeline.sources import Source, sources
from data_pipeline.twins import Part, Shared

SEEN_SHARE = 0.5
"""Where this share of the smaller source was seen in the other one, the pictures themselves say
whether the overlap crosses splits; below it they are cut or scaled too differently to tell."""


class Origin(NamedTuple):
    """Where the faces of one source name come from.

    Args:
        name: as the records say it.
        protocol: by which they were split; it begins with the name of the reader.
        splits: split -> faces.
    """

    dataset: str
    name: str
    protocol: str
    splits: Mapping[str, int]

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names a declaration may mean it by: its own, without annotators, its reader's."""
        return self.name, self.name.split("+")[0], self.protocol.split("/")[0]

    def __str__(self) -> str:
        of = f" of {self.dataset}" if self.dataset else ""
        return f"{self.name} ({', '.join(self.splits)}{of})"


def origins(faces: Mapping[Part, int], manifests: Mapping[str, Mapping[str, Any]]) -> list[Origin]:
    """Return the origin of all faces.

    Args:
        faces: part -> number of faces.
        manifests: of each dataset; empty where there is none.
    """
    grouped: dict[tuple[str, str], dict[str, int]] = {}
    for part, count in faces.items():
        grouped.setdefault((part.dataset, part.source), {})[part.split] = count
    protocols = {dataset: protocols_of(manifest) for dataset, manifest in manifests.items()}
    return [
        Origin(dataset, name, protocols[dataset].get(name, ""), splits)
        for (dataset, name), splits in grouped.items()
    ]


def known_overlaps(found: list[Origin], shared: Callable[[str, str], Shared]) -> Iterator[Finding]:
    """Yield a problem where an overlap crosses splits, else a note.

    Args:
        found: all origins.
        shared: how many pictures two source names were seen to share.
    """
    for one, other in combinations(found, 2):
        if _overlap(one, other):
            problem, detail = _judged(one, other, shared(one.name, other.name))
            yield Finding("known overlap", f"{one}, {other}", detail, problem)


def _overlap(one: Origin, other: Origin) -> bool:
    """Whether either declares the other and no protocol leaves out what they share."""
    pairs = ((one, other), (other, one))
    return any(_names(b, _declared(a)) for a, b in pairs) and not any(
        _names(b, _left_out(a)) for a, b in pairs
    )


def _names(origin: Origin, listed: Collection[str]) -> bool:
    return any(name in listed for name in origin.known_as)


def _readers(origin: Origin) -> list[Source]:
    return [sources()[name] for name in dict.fromkeys(origin.known_as) if name in sources()]


def _declared(origin: Origin) -> set[str]:
    return {name for reader in _readers(origin) for name in reader.overlaps}


def _left_out(origin: Origin) -> set[str]:
    """Sources whose pictures and people a protocol leaves out, by its setting ``without``."""
    used = (reader.protocols.get(origin.protocol) for reader in _readers(origin))
    return {name for protocol in used if protocol for name in protocol.settings.get("without", ())}


def _judged(one: Origin, other: Origin, seen: Shared) -> tuple[bool, str]:
    if len({*one.splits, *other.splits}) == 1:
        return False, "they share pictures or people, all in one split"
    smaller = min(sum(one.splits.values()), sum(other.splits.values()))
    if not seen.across and seen.within >= SEEN_SHARE * smaller:
        return False, f"they share pictures: {seen.within} seen, none of them across splits"
    told = f"; {seen.across} pictures seen across splits" if seen.across else ""
    return True, f"they share pictures or people, and not all in one split{told}"
