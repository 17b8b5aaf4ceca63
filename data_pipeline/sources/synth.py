"""``synth``: the folder ``face-mllm data synth`` writes; every label is exact."""

from __future__ import annotations

from data_pipeline.protocols import protocols
from data_pipeline.sources.base import Source
from data_pipeline.sources.records import read_rows

SOURCE = Source(
    name="synth",
    summary="faces rendered by `face-mllm data synth`, labels exact by construction",
    read_rows=read_rows,
    protocols=protocols("synth"),
)
