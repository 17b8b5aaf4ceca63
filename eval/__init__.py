"""Tasks, metrics, baselines and the report."""
