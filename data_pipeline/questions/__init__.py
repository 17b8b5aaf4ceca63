"""Question templates and their deterministic rendering."""

from data_pipeline.questions.question_set import QuestionSet
from data_pipeline.questions.render import (
    ZERO_SHOT,
    ClosedQuestion,
    closed_questions,
    render_questions,
)

__all__ = ["ZERO_SHOT", "ClosedQuestion", "QuestionSet", "closed_questions", "render_questions"]
