"""Do two annotators say the same? Consensus of their answers, and statistics per attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sklearn.metrics import cohen_kappa_score

from data_pipeline.annotate.questions import CAPTION, STATES, Answer
from data_pipeline.labels.leaks import mentions

Pairs = Counter[tuple[str, str]]


def consensus(answers: Sequence[Answer]) -> tuple[Answer, dict[str, list[str]]]:
    """Return what all answers agree on, and what each says where they differ.

    An attribute they differ about becomes unknown. The caption is the first that mentions none of
    those attributes; when each does, there is none.
    """
    first = answers[0]
    states = {name: [answer[name] for answer in answers] for name in first if name != CAPTION}
    disputed = {name: said for name, said in states.items() if len(set(said)) > 1}
    agreed = {name: "unknown" if name in disputed else first[name] for name in states}
    if CAPTION in first:
        names = tuple(disputed)
        fit = (a[CAPTION] for a in answers if mentions(a[CAPTION], names) is None)
        agreed = {CAPTION: next(fit, ""), **agreed}
    return agreed, disputed


def known_states(attributes: dict[str, Any]) -> Answer:
    """Return the attributes of a record's labels as an answer."""
    return {name: "yes" if value else "no" for name, value in attributes.items()}


class Agreement:
    """Counts how often two speakers say the same of an attribute.

    Args:
        between: their names.
    """

    def __init__(self, between: tuple[str, str]) -> None:
        self.between = between
        self.pairs: dict[str, Pairs] = {}

    def add(self, first: Answer, second: Answer) -> None:
        """Take in one face: the attributes both speak of."""
        for name in first.keys() & second.keys() - {CAPTION}:
            self.pairs.setdefault(name, Counter())[first[name], second[name]] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics per attribute and over all of them."""
        total = sum(self.pairs.values(), Counter[tuple[str, str]]())
        return {
            "between": list(self.between),
            "all": statistics(total),
            "attributes": {name: statistics(self.pairs[name]) for name in sorted(self.pairs)},
        }


def statistics(pairs: Pairs) -> dict[str, Any]:
    """Return n, percent agreement and Cohen's kappa, over three states and over the known ones.

    Kappa is None where both say one and the same thing throughout: chance then agrees as well.
    """
    known = Counter({pair: n for pair, n in pairs.items() if "unknown" not in pair})
    return {
        "n": pairs.total(),
        "percent": _percent(pairs),
        "kappa": _kappa(pairs),
        "n_known": known.total(),
        "percent_known": _percent(known),
        "kappa_known": _kappa(known),
    }


def _percent(pairs: Pairs) -> float | None:
    same = sum(n for (first, second), n in pairs.items() if first == second)
    return round(100 * same / pairs.total(), 2) if pairs else None


def _kappa(pairs: Pairs) -> float | None:
    said = _states(pairs)
    if len(said) < 2:
        return None
    firsts, seconds = zip(*pairs, strict=True)
    value = cohen_kappa_score(firsts, seconds, labels=said, sample_weight=list(pairs.values()))
    return round(float(value), 4)


def _states(pairs: Iterable[tuple[str, str]]) -> list[str]:
    said = {state for pair in pairs for state in pair}
    return [state for state in STATES if state in said]
