"""No text of a built dataset mentions a held-out attribute, whichever it is."""

import random
import re

import pytest

from data_pipeline.captions import telling_caption
from data_pipeline.labels import EXPRESSIONS, FAIRFACE_BANDS, GENDERS, action_units, attributes
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS
from data_pipeline.labels.leaks import checked_held_out
from data_pipeline.questions import render_questions
from data_pipeline.records import QA, FaceRecord
from data_pipeline.tally import LeakCheck


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


@pytest.mark.parametrize(
    ("caption", "held"),
    [
        ("An actress in a red dress", "male"),
        ("Mr. Smith waits", "male"),
        ("the bride's mother", "male"),
        ("a mustachioed rider", "mustache"),
        ("the five o'clock shadow", "five_o_clock_shadow"),
        ("her long straight black hair", "straight_hair"),
        ("long, black hair", "long_hair"),
        ("brown and wavy hair", "brown_hair"),
        ("her hair is long and brown", "brown_hair"),
        ("big brown eyes", "big_eyes"),
    ],
)
def test_captions_are_searched_as_people_write(caption, held):
    assert LeakCheck((held,)).clean_caption(caption) == ""


@pytest.mark.parametrize(
    ("caption", "held"),
    [
        ("black hair, big brown eyes", "brown_hair"),
        ("brown eyes and black hair", "brown_hair"),
        ("big eyes, closed mouth", "eyes_closed"),
        ("a straight nose and black hair", "straight_hair"),
        ("the person is shown", "male"),
    ],
)
def test_words_of_something_else_are_no_mention(caption, held):
    assert LeakCheck((held,)).clean_caption(caption) == caption


def test_gender_is_held_out_by_its_name():
    labels = {"gender": "female", "attributes": {"male": False, "smiling": True}}
    for name in ("gender", "Sex", "Male"):
        asked = render_questions(labels, "a", 0, "full", (name,))
        assert {qa.name for qa in asked if qa.name != "all"} == {"smiling"}
        assert not any(re.search(r"\b(fe)?male\b", qa.answer) for qa in asked)
        assert checked_held_out((name,)) == ("male",)


@pytest.mark.parametrize(
    ("name", "said"),
    [("smilng", "did you mean 'smiling'"), ("Eye_glasses", "'eyeglasses'"), ("age", "`tasks`")],
)
def test_a_name_that_would_hold_nothing_out_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        checked_held_out((name,))
    assert checked_held_out(("No_Beard", "odd_thing")) == ("beard", "odd_thing")
