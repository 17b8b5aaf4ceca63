"""Captions and attribute labels for faces, asked of vision models, checked and compared."""

from data_pipeline.annotate.finish import summary
from data_pipeline.annotate.questions import DEFAULT_ATTRIBUTES, Questions, asked_attributes
from data_pipeline.annotate.run import Options, annotate
from data_pipeline.annotate.spec import parse_annotator, parse_annotators

__all__ = [
    "DEFAULT_ATTRIBUTES",
    "Options",
    "Questions",
    "annotate",
    "asked_attributes",
    "parse_annotator",
    "parse_annotators",
    "summary",
]
