"""Tree rows: one face prefix, many isolated question branches, in a single sequence.

A :class:`TokenTree` is a trie of tokens. Every token attends to its ancestors and itself and takes
its depth as position, so its hidden state is exactly that of a separate pass over the path from
the root. Branches that begin with the same words share those tokens too, which changes nothing in
the result and saves the computation. The training rows and the likelihood scorer both use it.

Exactness conditions and the three silent failures (default positions, restarted positions without
a mask, a 2-D mask) are in ``docs/tree_rows.md``; ``tests/face_mllm/test_tree.py`` proves each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class TokenTree:
    """A trie of token ids in depth-first insertion order.

    Attributes:
        ids: token ids, length T.
        parents: index of each token's parent, -1 for the first token.
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

    def visible(self) -> np.ndarray:
        """Boolean [T, T]; entry (q, k) says that token q sees token k: an ancestor or itself."""
        size = len(self.ids)
        mask = np.zeros((size, size), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node, : parent + 1] = mask[parent, : parent + 1]
            mask[node, node] = True
        return mask


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
    """

    tree: TokenTree
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)

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


def collate_trees(rows: Sequence[TreeRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad tree rows into one batch of B rows of T tokens with L labelled rows in all.

    Padding tokens see themselves only, so no softmax runs over an empty row.

    Returns:
        input_ids [B, T], position_ids [B, T], attention_mask bool [B, 1, T, T], and, flat over
        the batch, label_rows [L] (index into B*T), label_targets [L], label_weights [L].
    """
    longest = max(len(row.tree) for row in rows)
    size = len(rows)
    ids = np.full((size, longest), pad_id, dtype=np.int64)
    positions = np.zeros((size, longest), dtype=np.int64)
    mask = np.zeros((size, 1, longest, longest), dtype=bool)
    mask[:, :, np.arange(longest), np.arange(longest)] = True
    for number, row in enumerate(rows):
        length = len(row.tree)
        ids[number, :length] = row.tree.ids
        positions[number, :length] = row.tree.positions()
        mask[number, 0, :length, :length] = row.tree.visible()
    flat = [number * longest + place for number, row in enumerate(rows) for place in row.rows]
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": torch.from_numpy(mask),
        "label_rows": torch.tensor(flat, dtype=torch.long),
        "label_targets": torch.tensor([t for row in rows for t in row.targets], dtype=torch.long),
        "label_weights": torch.tensor([w for row in rows for w in row.weights]),
    }
