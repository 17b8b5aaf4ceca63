"""``llava``: LLaVA's JSON or JSONL, ``id``, ``image`` and ``conversations`` of human and gpt.

Liu et al. 2023, Visual instruction tuning. Its own files repeat ids; conversations about one
picture stay in one split.
"""

from data_pipeline.sources._chat import chat_source

SOURCE = chat_source(
    "llava",
    "LLaVA JSON/JSONL: ready questions, kept as task vqa",
    turns="conversations",
    pictures="image",
)
