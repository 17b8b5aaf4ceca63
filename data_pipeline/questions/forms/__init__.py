"""Answer forms: what a record's labels let one ask, before any wording is chosen.

Each form is a function from labels to items; a label that is absent gives no item, so unknown
never becomes a question. A new kind of question is one function in the module of its task, and
its wordings in ``templates/``.
"""

from data_pipeline.questions.forms import action_unit, attribute, expression, face  # registers
from data_pipeline.questions.forms.base import (
    AGE_GRID,
    FORMS,
    NO,
    POSE_GRID,
    YES_NO,
    Context,
    Form,
    Grid,
    Item,
    Labels,
    digest,
)
from data_pipeline.questions.forms.head_pose import POSE_WORDS, pose_words

__all__ = [
    "AGE_GRID",
    "FORMS",
    "NO",
    "POSE_GRID",
    "POSE_WORDS",
    "YES_NO",
    "Context",
    "Form",
    "Grid",
    "Item",
    "Labels",
    "action_unit",
    "attribute",
    "digest",
    "expression",
    "face",
    "pose_words",
]
