"""No text of a built dataset mentions a held-out attribute, whichever it is."""

import random
import re

import pytest

from data_pipeline.captions import telling_caption
from data_pipeline.labels import EXPRESSIONS, FAIRFACE_BANDS, GENDERS, action_units, attributes
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS
from data_pipeline.labels.leaks import canonical_held_out
from data_pipeline.questions import render_questions
from data_pipeline.records import QA, FaceRecord
from data_pipeline.tally import LeakCheck
from face_mllm.errors import UserError


def test_a_misspelt_held_out_attribute_is_an_error_and_a_new_one_is_not():
    with pytest.raises(UserError, match="'smilng' -> did you mean 'smiling'"):
        canonical_held_out(["beard", "smilng"])
    assert canonical_held_out(["Smiling", "smiling", "face_paint"]) == ("smiling", "face_paint")


def everything_known(rng):
    """Labels of every kind, so that every form is asked."""
    return {
        "expression": rng.choice(EXPRESSIONS),
        "expression_votes": {"happiness": 0.5, "sadness": 0.5},
        "compound_expression": rng.choice(COMPOUND_EXPRESSIONS),
        "action_units": {f"AU{number}": rng.choice((0.0, 3.0, 5.0)) for number in action_units()},
        "attributes": {name: rng.random() < 0.5 for name in attributes()},
        "age": float(rng.randrange(80)),
        "age_band": rng.choice(FAIRFACE_BANDS),
        "head_pose": {"yaw": 20.0, "pitch": -10.0, "roll": 0.0},
        "gender": rng.choice(GENDERS),
    }


@pytest.mark.parametrize("name", ["compact", "full"])
def test_any_attribute_can_be_held_out(name):
    """Searched for in plain words, without the filter that removes them."""
    asked = 0
    for number, held in enumerate(attributes()):
        words = "|".join(rf"\b{re.escape(term.lower())}\b" for term in attributes()[held].terms)
        rng = random.Random(number)
        labels = everything_known(rng)
        said = telling_caption(labels, rng, (held,), short=name == "compact")
        qas = render_questions(labels, held, number, name, (held,), None, said)
        asked += len(qas)
        for text in {said, *(t for qa in qas for t in (qa.question, qa.answer, *qa.choices))}:
            assert not re.search(words, re.sub(r"[_\s-]+", " ", text.lower())), (held, text)
        LeakCheck((held,)).add(
            FaceRecord("a", "s", "train", "a", b"", labels, qa=qas, caption=said)
        )
    assert asked > 50 * len(attributes())


@pytest.mark.parametrize(
    ("caption", "held"),
    [  # as CelebA-Dialog and the web write
        ("This lady has no fringe.", "male"),
        ("He looks straight ahead.", "male"),
        ("There is no fringe on her forehead.", "bangs"),
        ("The person is laughing.", "smiling"),
        ("Facial hair covers the chin.", "beard"),
        ("A bespectacled clerk.", "eyeglasses"),
    ],
)
def test_captions_of_sources_lose_what_they_give_away(caption, held):
    assert LeakCheck((held,)).clean_caption(caption) == ""
    assert LeakCheck(("wearing_hat",)).clean_caption(caption) == caption


@pytest.mark.parametrize("choice", ["a grin", "A Smiling One", "smiles"])
def test_a_choice_alone_gives_it_away(choice):
    leaks = LeakCheck(("smiling",))
    kept = QA("vqa", "all", "Which?", "no", ("a hat", "no"))
    told = QA("vqa", "all", "Which?", "no", (choice, "no"))
    assert leaks.clean_questions([kept, told]) == (kept,)
    assert leaks.as_dict()["questions_removed"] == 1
