"""``messages``: OpenAI-style ``messages`` with roles; pictures in the parts or in ``images``."""

from data_pipeline.sources._chat import chat_source

SOURCE = chat_source(
    "messages", "OpenAI-style messages: ready questions, kept as task vqa", turns="messages"
)
