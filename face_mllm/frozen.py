"""``cache_features``: a frozen tower looks at each picture once for all stages and epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from data_pipeline.records import FaceRecord
from face_mllm.features import FrozenTower
from face_mllm.hardware import lent
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.progress import Progress
from face_mllm.rows import FaceRows


def cache_vision(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    rows: FaceRows,
    accelerator: Any,
    progress: Progress | None = None,
    root: Path | None = None,
) -> None:
    """Let rows bring the tower's states instead of pixels; collective.

    Every process computes its share of what no earlier run has left in the cache. The tower runs
    in its own dtype, whatever the precision of the stage.

    Args:
        model: composed model, the tower frozen.
        processor: its processor.
        rows: of the stage; changed.
        accelerator: joins the processes.
        progress: called with (faces, faces, text).
        root: folder of all caches; the user's cache folder if not given.
    """
    config = model.config
    share = rows.visited()[accelerator.process_index :: accelerator.num_processes]
    with lent(model.vision_tower, accelerator.device):
        tower = FrozenTower(
            model.vision_tower, processor.image_processor, config.vision_layer, config.vision_select
        )
        cache = tower.cache(root)
        if share:
            tower.fill(cache, _Faces(rows, share), progress)
    accelerator.wait_for_everyone()
    cache.refresh()
    rows.states = cache


class _Faces(Sequence[FaceRecord]):
    """Some training faces, read when they are asked for."""

    def __init__(self, rows: FaceRows, faces: Sequence[int]) -> None:
        self.rows, self.faces = rows, faces

    def __len__(self) -> int:
        return len(self.faces)

    @overload
    def __getitem__(self, place: int) -> FaceRecord: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[FaceRecord]: ...

    def __getitem__(self, place: int | slice) -> FaceRecord | Sequence[FaceRecord]:
        if isinstance(place, slice):
            return _Faces(self.rows, self.faces[place])
        return FaceRecord.from_row(self.rows.records[self.faces[place]])

    def __iter__(self) -> Iterator[FaceRecord]:
        return (self[place] for place in range(len(self)))
