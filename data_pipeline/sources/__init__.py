"""One small file per dataset as distributed."""
