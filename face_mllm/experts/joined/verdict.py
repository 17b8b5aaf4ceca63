"""The expert's verdict as words: ``Expert: happiness 0.82, surprise 0.11.``"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from face_mllm.errors import UserError, brief
from face_mllm.outputs import whole_file

ABOUT = b"face_mllm"  # key of the file's own description


def verdict(classes: Sequence[str], logs: torch.Tensor, most: int) -> str:
    """Words for log-probabilities [K] of the classes: the ``most`` likeliest, two digits each."""
    chances = logs.double().exp()
    order = sorted(range(len(classes)), key=lambda k: (-float(chances[k]), k))[:most]
    return f"Expert: {', '.join(f'{classes[k]} {float(chances[k]):.2f}' for k in order)}."


def told(words: str, question: str) -> str:
    """A question with the verdict before it, or as it is where there is none.

    The verdict stands first, so all questions of a face share its tokens in the tree.
    """
    return f"{words}\n{question}" if words else question


def write_verdicts(
    path: Path, classes: Sequence[str], logs: dict[str, torch.Tensor], about: dict
) -> None:
    """Write log-probabilities by face id, whole or not at all."""
    table = pa.table(
        {
            "id": list(logs),
            "log_probabilities": [row.double().tolist() for row in logs.values()],
        }
    )
    noted = json.dumps({"classes": list(classes), **about})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        pq.write_table(table.replace_schema_metadata({ABOUT: noted}), partial)


class Verdicts:
    """Verdicts of a file by face id.

    Args:
        path: what ``mask-fer verdicts`` wrote.
        classes: of the expert of this stage, which must be the same.

    Raises:
        UserError: no such file, or of another expert's classes.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        remedy = "set expert.verdicts to a file of `face-mllm mask-fer verdicts`, or to auto"
        if not path.is_file():
            raise UserError(f"{path}: no such file of verdicts", remedy)
        try:
            table = pq.read_table(path)
            known = json.loads((table.schema.metadata or {})[ABOUT])["classes"]
            names = table["id"].to_pylist()
            logs = torch.tensor(table["log_probabilities"].to_pylist(), dtype=torch.float64)
            if known == list(classes) and logs.shape != (len(names), len(known)):
                raise ValueError(f"not {len(known)} numbers a face")
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a file of verdicts ({brief(error)})", remedy) from error
        if known != list(classes):
            raise UserError(
                f"{path}: verdicts on {known}, the expert knows {list(classes)}",
                "make the verdicts with the expert of this stage",
            )
        self.path, self.logs = path, logs
        self.rows = {name: k for k, name in enumerate(names)}

    def check(self, names: Sequence[str]) -> None:
        """Every face has its verdict.

        Args:
            names: ids of the faces.

        Raises:
            UserError: some have none.
        """
        lacking = [name for name in names if name not in self.rows]
        if lacking:
            raise UserError(
                f"{self.path}: no verdict on {len(lacking)} of {len(names)} training faces, such "
                f"as {lacking[0]}",
                "make the verdicts on this stage's data",
            )

    def of(self, name: str) -> torch.Tensor:
        """Log-probabilities [K] of a face."""
        self.check([name])
        return self.logs[self.rows[name]]
