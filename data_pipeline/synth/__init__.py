"""Faces with exact labels from a parametric head."""
