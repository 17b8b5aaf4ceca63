"""Question templates and their deterministic rendering."""
