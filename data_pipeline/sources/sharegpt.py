"""``sharegpt``: ShareGPT's ``conversations`` with ``images``, as LLaMA-Factory and ms-swift do."""

from data_pipeline.sources._chat import chat_source

SOURCE = chat_source(
    "sharegpt",
    "ShareGPT JSON/JSONL: ready questions, kept as task vqa",
    turns="conversations",
    pictures="images",
)
