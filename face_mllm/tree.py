"""Tree rows: one face prefix, many isolated question branches, in a single sequence.

A :class:`TokenTree` is a trie of tokens. Every token attends to its ancestors and itself and takes
its depth as position, so its hidden state is exactly that of a separate pass over the path from
the root. Branches that begin with the same words share those tokens too, which changes nothing in
the result and saves the computation. The training rows and the likelihood scorer both use it.

In a batch each tree is laid out depth first, so a token's descendants are the tokens up to its
*subtree end*: one number a token says all there is to know about the mask (``model/attention.py``),
and several trees stand in one row without seeing each other.

Exactness conditions and the three silent failures (default positions, restarted positions without
a mask, a 2-D mask) are in ``docs/tree_rows.md``; ``tests/face_mllm/test_tree.py`` proves each.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class TokenTree:
    """A trie of token ids in insertion order.

    Attributes:
        ids: token ids, length T.
        parents: index of each token's parent, -1 for a first token.
    """

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def insert(self, tokens: Sequence[int], parent: int = -1, *, share: bool = True) -> list[int]:
        """Add a path below ``parent`` and return the index of each of its tokens.

        Args:
            tokens: ids of the path.
            parent: index the path hangs from; -1 starts at the root.
            share: reuse tokens already there (image placeholders must not be merged).
        """
        path = []
        for token in tokens:
            node = self._children.get((parent, token)) if share else None
            if node is None:
                node = len(self.ids)
                self.ids.append(token)
                self.parents.append(parent)
                self._children[parent, token] = node
            path.append(node)
            parent = node
        return path

    def positions(self) -> np.ndarray:
        """Depth of each token, int64 [T]."""
        depth = np.zeros(len(self.ids), dtype=np.int64)
        for node, parent in enumerate(self.parents):
            depth[node] = depth[parent] + 1 if parent >= 0 else 0
        return depth

    def layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth-first order of the tree.

        Returns:
            places int64 [T], where each token stands; ends int64 [T], in that order, where each
            token's subtree ends (exclusive): token q descends from token k, or is it, exactly if
            ``k <= q < ends[k]``.
        """
        sizes = [1] * len(self.ids)
        for node in range(len(self.ids) - 1, -1, -1):  # children come after their parents
            if self.parents[node] >= 0:
                sizes[self.parents[node]] += sizes[node]
        places, free, top = [0] * len(self.ids), [0] * len(self.ids), 0
        for node, parent in enumerate(self.parents):
            place = free[parent] if parent >= 0 else top
            places[node], free[node] = place, place + 1
            if parent >= 0:
                free[parent] += sizes[node]
            else:
                top += sizes[node]
        ends = np.zeros(len(self.ids), dtype=np.int64)
        ends[places] = np.asarray(places) + np.asarray(sizes)
        return np.asarray(places, dtype=np.int64), ends


@dataclass
class TreeRow:
    """One face as a model input: its tree and what each labelled row must predict.

    Attributes:
        tree: prefix and branches.
        rows: indices of the tokens whose logits are needed, length L.
        targets: token id to predict at each of them, length L.
        weights: loss weight of each of them, length L.
        groups: which question each of them belongs to, length L.
        tasks: code of its task, length L, where known.
        separate: tokens the same branches would take as conversations of their own.
    """

    tree: TokenTree
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    separate: int = 0

    def add_branch(
        self,
        root: int,
        tokens: Sequence[int],
        labelled_from: int,
        weight: float = 1.0,
        group: int = 0,
    ) -> None:
        """Hang one question with its answer below ``root``.

        Args:
            root: index of the prefix's last token.
            tokens: question and answer ids, the answer ending in the end-of-turn token.
            labelled_from: position in ``tokens`` where the answer starts.
            weight: factor on the loss of each answer token.
            group: the question's number in the caller's list.
        """
        path = [root, *self.tree.insert(tokens[:-1], root)]
        for place in range(labelled_from, len(tokens)):
            self.rows.append(path[place])
            self.targets.append(tokens[place])
            self.weights.append(weight)
            self.groups.append(group)
        self.separate += root + len(tokens)  # the prefix stands first, so root + 1 is its length


def plan_rows(
    lengths: Sequence[int], max_tokens: int, square: float = 0.0, multiple: int = 1
) -> list[list[int]]:
    """Which trees share a row: the packing that costs least.

    For every number of rows the trees are dealt longest first to the shortest row. R rows of W
    tokens cost ``R * W * (1 + square * W)``: padding is paid for, and so is dense attention, which
    computes the pairs of different trees only to mask them.

    Args:
        lengths: tokens of each tree.
        max_tokens: longest row; a longer single tree still gets a row of its own.
        square: cost of one dense attention pair relative to one token, see
            :func:`face_mllm.model.attention.pair_cost`; 0 where masked blocks are skipped.
        multiple: W is rounded up to it.

    Returns:
        Numbers of the trees in each row, in order.
    """
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    limit = max(max_tokens, *lengths)
    best: tuple[float, list[list[int]]] | None = None
    for count in range(1, len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, row) for row in range(count)]
        for number in order:
            load, row = heapq.heappop(loads)
            rows[row].append(number)
            heapq.heappush(loads, (load + lengths[number], row))
        fullest = max(load for load, _ in loads)
        width = _rounded(fullest, multiple)
        cost = count * width * (1 + square * width)
        if fullest <= limit and (best is None or cost < best[0]):
            best = (cost, sorted(sorted(row) for row in rows))
    assert best is not None  # as many rows as trees always fit
    return best[1]


def collate_trees(
    trees: Sequence[TreeRow],
    pad_id: int,
    plan: Sequence[Sequence[int]] | None = None,
    multiple: int = 1,
) -> dict[str, torch.Tensor]:
    """Lay trees out in R padded rows of W tokens with L labelled rows in all.

    Padding tokens see themselves only, so no softmax runs over an empty row; a batch without trees
    is one row of padding. Padding labels weigh nothing.

    Args:
        trees: one per face.
        pad_id: token of the padding.
        plan: numbers of the trees in each row; None gives each its own.
        multiple: W and L are rounded up to multiples of it, so that shapes come back.

    Returns:
        input_ids, position_ids and subtree_ends, int64 [R, W]; flat over the batch in the order of
        the plan, label_rows [L] (index into R*W), label_targets [L] and label_weights [L].
    """
    plan = [[number] for number in range(len(trees))] if plan is None else plan
    lengths = [sum(len(trees[number].tree) for number in row) for row in plan]
    width = _rounded(max(lengths, default=1), multiple)
    shape = (max(len(plan), 1), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    ends = np.tile(np.arange(1, width + 1), (shape[0], 1))
    labels: dict[str, list] = {"rows": [], "targets": [], "weights": []}
    for row, numbers in enumerate(plan):
        start = 0
        for number in numbers:
            tree = trees[number].tree
            places, tree_ends = tree.layout()
            places += start
            ids[row, places] = tree.ids
            positions[row, places] = tree.positions()
            ends[row, start : start + len(tree)] = tree_ends + start
            labels["rows"] += (row * width + places[trees[number].rows]).tolist()
            labels["targets"] += trees[number].targets
            labels["weights"] += trees[number].weights
            start += len(tree)
    for values in labels.values():
        values += [0] * (_rounded(len(values), multiple) - len(values))
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "subtree_ends": torch.from_numpy(ends),
        "label_rows": torch.tensor(labels["rows"], dtype=torch.long),
        "label_targets": torch.tensor(labels["targets"], dtype=torch.long),
        "label_weights": torch.tensor(labels["weights"], dtype=torch.float32),
    }


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
