"""How a build is carried out: in one process or many, on one machine or a cluster, and resumably.

An engine runs one function over many jobs and hands the results back in the order of the jobs, so
a build writes the same bytes whichever engine and number of workers it has. What the jobs are, is
in ``data_pipeline/build.py``.
"""

from data_pipeline.engine.engines import ENGINES, Engine, make_engine
from data_pipeline.engine.outcome import Chunk, Outcome, Room, chunks_of
from data_pipeline.engine.shards import Loss, Shard, Written, plan_shards, split_parts, write_shard
from data_pipeline.engine.spool import Part, Spool
from data_pipeline.engine.workspace import BuildStoppedError, Workspace, build_key, workspace

__all__ = [
    "ENGINES",
    "BuildStoppedError",
    "Chunk",
    "Engine",
    "Loss",
    "Outcome",
    "Part",
    "Room",
    "Shard",
    "Spool",
    "Workspace",
    "Written",
    "build_key",
    "chunks_of",
    "make_engine",
    "plan_shards",
    "split_parts",
    "workspace",
    "write_shard",
]
