"""From the votes of several annotators to a target: shares of expression words that sum to 1.

The first votes belong to ``words``; votes behind them ("unknown", "not a face") speak for none.
Nothing comes back where the votes name no expression. ``majority`` and ``probability`` are modes of
microsoft/FERPlus ``src/ferplus.py`` (Barsoum et al. 2016); all 35,887 rows of its table agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Shares = dict[str, float]


def majority(votes: Sequence[int], words: Sequence[str]) -> Shares:
    """Return the word with more than half of the votes, single votes not counted."""
    counted = _without_single(votes)
    top = _first_best(counted)
    sure = counted[top] > 0.5 * sum(counted) and top < len(words)
    return {words[top]: 1.0} if sure else {}


def argmax(votes: Sequence[int], words: Sequence[str]) -> Shares:
    """Return the word with most votes, the first of a tie; votes for none are ignored."""
    top = _first_best(votes[: len(words)])
    return {words[top]: 1.0} if votes[top] else {}


def probability(votes: Sequence[int], words: Sequence[str]) -> Shares:
    """Return the shares of the top words that hold 75 % of the votes, at most three."""
    rest = _without_single(votes)
    total, kept, count, taken, emotions = sum(rest), [0] * len(rest), 0, 0, True
    while taken < 0.75 * total and count < 3 and emotions:
        top = max(rest)
        for place in [place for place, vote in enumerate(rest) if vote == top]:
            kept[place], rest[place] = top, 0
            taken += top
            count += 1
            if place >= len(words):  # a vote for none ends the search, and goes if others lead
                emotions = False
                if sum(kept) > top:
                    kept[place] = 0
                    count -= 1
                break
    if sum(kept) <= 0.5 * total or count > 3 or _first_best(kept) >= len(words):
        return {}
    named = {word: vote for word, vote in zip(words, kept, strict=False) if vote}
    return {word: vote / sum(named.values()) for word, vote in named.items()}


def leader(shares: Mapping[str, float]) -> str | None:
    """Return the word with the largest share, None where several have it."""
    best = max(shares.values(), default=0.0)
    leaders = [word for word, share in shares.items() if share == best]
    return leaders[0] if len(leaders) == 1 else None


def _without_single(votes: Sequence[int]) -> list[int]:
    return [vote if vote > 1 else 0 for vote in votes]


def _first_best(votes: Sequence[int]) -> int:
    return max(range(len(votes)), key=votes.__getitem__)


TARGETS: Mapping[str, Callable[[Sequence[int], Sequence[str]], Shares]] = {
    "majority": majority,
    "argmax": argmax,
    "probability": probability,
}
"""Names as protocols use them."""
