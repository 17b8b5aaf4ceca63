"""Reading generated answers: the traps of published parsers."""

from __future__ import annotations

import pytest

from data_pipeline.labels.action_units import GRADE_WORDS
from data_pipeline.labels.expressions import BASIC7, SYNONYMS
from data_pipeline.questions.forms import pose_words
from eval.parse import parse_answer

YES_NO = ("yes", "no")
AGES = tuple(str(age) for age in range(0, 100, 5))
AGE_VALUES = tuple(map(float, AGES))
POSE_VALUES = tuple(float(angle) for angle in range(-90, 91, 10))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes.", 0),
        ("no", 1),
        ("No, the nose is normal.", 1),
        ("The nose is normal.", None),
        ("She knows.", None),
        ("", None),
    ],
)
def test_yes_no_reads_whole_words(said, expected):
    assert parse_answer(said, YES_NO) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("wide eyes", 0),
        ("Yes, wide eyes.", 0),
        ("no", 1),
        ("No wide eyes", 1),
        ("The person does not have wide eyes", 1),
        ("noble", None),
    ],
)
def test_a_named_answer_or_no(said, expected):
    assert parse_answer(said, ("wide eyes", "no")) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("happiness", "happiness"),
        ("The person looks happy.", "happiness"),
        ("The nose is wrinkled, this is disgust", "disgust"),
        ("not happiness but anger", "anger"),
        ("This is not anger.", None),
        ("unhappy", "sadness"),
        ("happiness or anger", None),
        ("I cannot tell", None),
    ],
)
def test_expression_drops_negated_clauses_and_has_no_default(said, expected):
    found = parse_answer(said, BASIC7, synonyms=SYNONYMS)
    assert (None if found is None else BASIC7[int(found)]) == expected


@pytest.mark.parametrize(
    ("said", "values", "expected"),
    [
        ("35", AGE_VALUES, 35),
        ("about 35 years", AGE_VALUES, 35),
        ("-20", POSE_VALUES, -20),
        ("\u221220 degrees", POSE_VALUES, -20),
        ("1990", AGE_VALUES, None),
        ("old", AGE_VALUES, None),
    ],
)
def test_numbers_are_the_first_in_range(said, values, expected):
    assert parse_answer(said, [f"{value:.0f}" for value in values], values) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("right 30", -30),
        ("Left 30.", 30),
        ("The head is turned right 10 degrees", -10),
        ("straight", 0),
        ("-20", -20),
        ("right 33", None),  # no choice: its sign would be lost
        ("", None),
    ],
)
def test_numbers_put_in_words_keep_their_sign(said, expected):
    choices = tuple(pose_words("yaw", int(value)) for value in POSE_VALUES)
    assert parse_answer(said, choices, POSE_VALUES) == expected


@pytest.mark.parametrize(("said", "expected"), [("Marked.", 3), ("absent", 0), ("strong", None)])
def test_grade_words_are_read_as_grades(said, expected):
    assert parse_answer(said, GRADE_WORDS, tuple(map(float, range(6)))) == expected
