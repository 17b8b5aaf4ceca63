"""Answer forms beyond one word: lists, grades, units, comparisons, mixtures, reasons."""

from collections import Counter

import pytest
import yaml

from data_pipeline.labels import find_leaks, validate_labels
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS
from data_pipeline.labels.prototypes import PROTOTYPES, core_units, typical_expression
from data_pipeline.questions import QuestionSet, closed_questions, render_questions
from data_pipeline.questions.forms.expression import votes_in_words
from face_mllm.errors import UserError

FLAGS = {
    "wearing_hat": True,
    "smiling": True,
    "beard": False,
    "bangs": False,
    "eyeglasses": False,
    "mouth_open": False,
}


@pytest.fixture
def ask(tmp_path):
    """Render questions by forms alone: name -> QA of each."""

    def render(labels, *forms, key="a", held_out=(), **settings):
        path = tmp_path / "set.yaml"
        path.write_text(yaml.safe_dump({"forms": list(forms), **settings}))
        chosen = QuestionSet.load(path)
        return {qa.name: qa for qa in render_questions(labels, key, 0, chosen, held_out)}

    return render


def test_active_units_are_listed_with_names_unless_a_name_leaks(ask):
    labels = {"action_units": {"AU25": True, "AU12": 3, "AU4": 1}}
    plain = ask(labels, "action_unit/names")["all"].answer
    assert plain == "AU12 (lip corner puller), AU25 (lips part)"
    held = ask(labels, "action_unit/names", held_out=["mouth_open"])["all"].answer
    assert held == "AU12 (lip corner puller), AU25"
    assert ask({"action_units": {"AU4": 0}}, "action_unit/names")["all"].answer == "none"


@pytest.mark.parametrize(("value", "word"), [(0, "absent"), (1.5, "slight"), (5.0, "maximum")])
def test_intensities_have_words(ask, value, word):
    (qa,) = ask({"action_units": {"AU12": value, "AU4": True}}, "action_unit/grade").values()
    assert qa.answer == word
    assert "absent, trace, slight, marked, severe or maximum" in qa.question
    full = closed_questions({"action_units": {"AU12": value}}, "full")
    (closed,) = [q for q in full if q.task == "action_unit_grade"]
    assert closed.truth == value
    assert closed.values == (0, 1, 2, 3, 4, 5)


def test_numbers_carry_their_unit(ask):
    labels = {"age": 1.2, "head_pose": {"yaw": -14.2, "roll": 0.6}}
    exact = ask(labels, "age/units", "head_pose/units", exact_numbers=True)
    assert {name: qa.answer for name, qa in exact.items()} == {
        "all": "1 year",
        "yaw": "-14 degrees",
        "roll": "1 degree",
    }
    coarse = ask({"age": 33.4}, "age/units")["all"]
    assert coarse.answer == "35 years"
    assert coarse.choices[:2] == ("0 years", "5 years")


def test_two_attributes_are_compared_only_when_one_is_there(ask):
    questions = ask({"attributes": FLAGS}, "attribute/compare")
    assert {name: qa.answer for name, qa in questions.items()} == {
        "wearing_hat": "a hat",
        "smiling": "a smile",
    }
    for qa in questions.values():
        assert len(qa.choices) == 2
        assert qa.answer in qa.choices
        assert " or ".join(qa.choices) in qa.question
    assert ask({"attributes": {"beard": False, "bangs": False}}, "attribute/compare") == {}
    assert ask({"attributes": {"beard": True, "bangs": True}}, "attribute/compare") == {}


def test_options_are_shuffled_and_answers_stand_anywhere(ask):
    places = Counter()
    for number in range(200):
        qa = ask({"attributes": FLAGS}, "attribute/options", key=f"k{number}")["wearing_hat"]
        assert len(qa.choices) == 4
        assert "a smile" not in qa.choices  # the face has it as well
        places[qa.choices.index(qa.answer)] += 1
    assert set(places) == {0, 1, 2, 3}
    assert min(places.values()) > 25


def test_held_out_attributes_are_no_option_and_side_by_side_is_never_scored(ask):
    for number in range(50):
        questions = ask(
            {"attributes": FLAGS},
            *("attribute/compare", "attribute/options"),
            key=f"k{number}",
            held_out=["beard", "smiling"],
        )
        assert set(questions) == {"wearing_hat"}
        texts = [text for qa in questions.values() for text in (qa.question, *qa.choices)]
        assert find_leaks(texts, ["beard", "smiling"]) == []
    tasks = {question.task for question in closed_questions({"attributes": FLAGS}, "full")}
    assert tasks == {"attribute"}


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        ({"neutral": 0.6, "sadness": 0.3, "fear": 0.05}, "mostly neutral, partly sad"),
        ({"happiness": 1.0}, "clearly happy"),
        ({"surprise": 0.4, "fear": 0.4, "anger": 0.1}, "partly surprised, partly fearful"),
        ({"anger": 0.7, "disgust": 0.15}, "mostly angry, slightly disgusted"),
        ({"fear": 0.05}, ""),
        ({}, ""),
    ],
)
def test_votes_become_a_mixture(votes, said):
    assert votes_in_words(votes).startswith(said)
    assert bool(votes_in_words(votes)) == bool(said)


def test_votes_and_compounds_are_asked_and_checked(ask):
    labels = {"expression_votes": {"neutral": 0.6, "sadness": 0.3}}
    assert validate_labels(labels) == []
    assert ask(labels, "expression/votes")["all"].answer == "mostly neutral, partly sad"
    assert validate_labels({"expression_votes": {"sadness": 0.8, "fear": 0.4}})
    assert validate_labels({"expression_votes": {"sad": 0.8}})
    labels = {"compound_expression": "sadly angry"}
    assert validate_labels(labels) == []
    assert validate_labels({"compound_expression": "fearfully disgusted"})
    word = ask(labels, "expression/compound")["all"]
    assert (word.answer, word.choices) == ("sadly angry", COMPOUND_EXPRESSIONS)
    choice = ask(labels, "expression/compound_choice")["all"]
    assert set(choice.choices) == set(COMPOUND_EXPRESSIONS)
    assert choice.choices != COMPOUND_EXPRESSIONS


def test_every_prototype_is_recognised_by_its_own_core():
    every = {unit for units in PROTOTYPES.values() for unit in units}
    for name in PROTOTYPES:
        found = typical_expression({unit: unit in core_units(name) for unit in every})
        assert found == (None if name == "neutral" else name)


@pytest.mark.parametrize(
    ("units", "expression"),
    [
        ({"AU6": True, "AU12": True, "AU14": True}, None),  # happiness or contempt
        ({"AU12": True}, None),  # AU6 is unknown: half a core is too little
        ({"AU4": True, "AU7": True}, "anger"),  # AU24 unknown, two of three seen
        ({"AU4": True, "AU7": True, "AU24": False}, None),
        ({"AU14": True}, "contempt"),
        ({"AU1": True, "AU2": True}, None),
        ({}, None),
    ],
)
def test_half_a_reason_is_none(units, expression):
    assert typical_expression(units) == expression


def test_a_reason_agrees_with_the_label_or_stays_silent(ask):
    units = {"action_units": {"AU6": 3, "AU12": 4, "AU25": 2, "AU1": 0}}
    said = "AU6 (cheek raiser) and AU12 (lip corner puller) are active: typical of happiness."
    assert ask(units, "expression/rationale")["all"].answer == said
    happy = {**units, "expression": "happiness"}
    assert ask(happy, "expression/rationale")["all"].answer == said
    assert ask({**units, "expression": "sadness"}, "expression/rationale") == {}
    assert ask(units, "expression/rationale", active_threshold=4) == {}


# --- cannot be told


def test_unknown_is_asked_only_on_request_and_only_where_unknown(ask):
    labels = {"attributes": {"beard": True}, "action_units": {"AU12": 2}, "age": 30.0}
    forms = ("attribute/named", "action_unit/yes_no", "age/years", "gender/word")
    assert {"Bangs", "AU4", "gender"}.isdisjoint(ask(labels, *forms))
    wanted = ["Bangs", "beard", "au4", "AU12", "age"]
    asked = ask(labels, *forms, ask_unknown=wanted)
    told = {name: qa.answer for name, qa in asked.items()}
    assert told == {
        "beard": "beard",
        "bangs": "cannot be told",
        "AU12": "yes",
        "AU4": "cannot be told",
        "all": "30",
    }
    assert asked["AU4"].choices == ("yes", "no", "cannot be told")
    assert "AU4" in asked["AU4"].question or "brow" in asked["AU4"].question


def test_unknown_knows_other_keys_and_is_never_scored(ask):
    forms = ["expression/word", "age/band", "gender/word", "head_pose/words"]
    names = ["expression", "age", "gender", "yaw"]
    labels = {
        "expression_votes": {"fear": 1.0},
        "age": 30,
        "attributes": {"male": True},
        "head_pose": {"yaw": 10.0},
    }
    assert ask(labels, *forms[:3], ask_unknown=names) == {}
    asked = ask({"head_pose": {"pitch": 0.0}}, "head_pose/words", ask_unknown=names)
    assert asked["yaw"].answer == "cannot be told"
    chosen = QuestionSet.load("full", ask_unknown=names)
    assert closed_questions({}, chosen) == []
    asked = render_questions({}, "a", 0, chosen)
    assert {qa.answer for qa in asked} == {"cannot be told"}
    assert {qa.task for qa in asked} >= {"expression", "expression_choice", "head_pose_units"}


def test_a_name_nobody_knows_is_refused():
    with pytest.raises(UserError, match=r"ask_unknown.*'smirking_hard'"):
        QuestionSet.load("compact", ask_unknown=["smirking_hard"])


# --- yes/no ratio


@pytest.mark.parametrize(("ratio", "kept"), [(1, 2), (2.5, 5), (0.1, 1), (100, 8), (None, 8)])
def test_no_is_thinned_to_the_ratio_and_yes_never(ask, ratio, kept):
    flags = {f"made_up_{n}": n < 2 for n in range(10)}
    asked = ask({"attributes": flags}, "attribute/yes_no", no_per_yes=ratio)
    answers = Counter(qa.answer for qa in asked.values())
    assert answers == {"yes": 2, "no": kept}


def test_chance_thins_and_other_forms_are_left_alone(ask):
    labels = {"attributes": {f"made_up_{n}": False for n in range(10)}, "expression": "fear"}
    forms = ("attribute/named", "expression/yes_no", "action_unit/grade")
    kept = Counter()
    for number in range(300):
        asked = ask(labels, *forms, key=f"k{number}", no_per_yes=1)
        assert len(asked) == 1 + 2  # one attribute; fear and one other expression
        kept.update(name for name in asked if name.startswith("made_up"))
    assert len(kept) == 10
    assert max(kept.values()) < 3 * min(kept.values())
    graded = {"action_units": {f"AU{n}": 0 for n in (1, 2, 4)}}
    assert len(ask(graded, "action_unit/grade", no_per_yes=1)) == 3


def test_new_settings_leave_the_hash_of_old_sets_alone():
    plain = QuestionSet.load("compact")
    assert plain.hash == QuestionSet.load("compact", no_per_yes=None, ask_unknown=[]).hash
    assert plain.hash != QuestionSet.load("compact", no_per_yes=1.0).hash
    assert plain.hash != QuestionSet.load("compact", ask_unknown=["age"]).hash
