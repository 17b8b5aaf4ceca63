import numpy as np
import pytest
import yaml

from data_pipeline.labels import (
    BASIC7,
    CELEBA_ATTRIBUTES,
    EXPRESSIONS,
    FAIRFACE_BANDS,
    SYNONYMS,
    action_units,
    attribute,
    band_midpoint,
    band_of,
    canonical_attribute,
    canonical_band,
    canonical_expression,
    find_leaks,
    is_active,
    parse_action_unit,
    validate_labels,
)
from data_pipeline.labels.attributes import attributes, groups, snake_case
from data_pipeline.labels.codes import FOLDER, codes
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS, OTHER_EXPRESSIONS
from data_pipeline.labels.validate import GENDERS, contradictions
from data_pipeline.labels.votes import TARGETS
from face_mllm.errors import UserError

# AU lists of the datasets the readers will meet (EmoLA eval_FABA.py; FABA-Bench)
DISFA = (1, 2, 4, 6, 9, 12, 25, 26)
BP4D = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
EMOTIONET = (1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26, 43)


def test_expressions_are_eight_and_the_first_seven_are_the_basic_ones():
    assert len(set(EXPRESSIONS)) == 8
    assert set(BASIC7) == set(EXPRESSIONS) - {"contempt"}


@pytest.mark.parametrize(
    ("word", "canonical"),
    [
        ("Angry", "anger"),
        ("happy", "happiness"),
        ("Joy", "happiness"),
        (" SAD ", "sadness"),
        ("scared", "fear"),
        ("Surprised", "surprise"),
        ("disgusted", "disgust"),
        ("no_expression", "neutral"),
    ],
)
def test_synonyms_lead_to_the_canonical_noun(word, canonical):
    assert canonical_expression(word) == canonical


def test_no_synonym_stands_for_two_expressions():
    words = [word for name in SYNONYMS for word in (name, *SYNONYMS[name])]
    assert len(words) == len(set(words))
    assert set(SYNONYMS) == {*EXPRESSIONS, *OTHER_EXPRESSIONS}


def test_the_rare_three_of_mafw_are_labels_but_neither_basic_nor_canonical():
    for word, adjective in zip(
        OTHER_EXPRESSIONS, ("anxious", "helpless", "disappointed"), strict=True
    ):
        assert canonical_expression(adjective) == word
        assert not validate_labels({"expression": word})
        assert word not in EXPRESSIONS


def test_unknown_expression_names_the_nearest():
    with pytest.raises(UserError, match="'happiness'"):
        canonical_expression("hapiness")


def test_registry_covers_the_units_datasets_code():
    assert set(DISFA) | set(BP4D) | set(EMOTIONET) <= set(action_units())
    assert all(unit.muscles and unit.name and unit.short for unit in action_units().values())
    assert action_units()[12].muscles == ("zygomaticus major",)


@pytest.mark.parametrize("text", ["AU12", "au_12", "AU 12", "12", 12, "AU012", "au-12"])
def test_action_unit_spellings(text):
    assert parse_action_unit(text).label == "AU12"


@pytest.mark.parametrize("text", ["AU3", "AU", "AU999", "smile", "1AU2"])
def test_not_an_action_unit(text):
    with pytest.raises(UserError, match="not a FACS action unit"):
        parse_action_unit(text)


def test_active_is_two_and_more_or_the_flag():
    assert [is_active(v) for v in (0, 1, 1.99, 2, 5.0, True, False)] == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert is_active(1, threshold=1)


def test_all_forty_celeba_names_are_registered_without_collision():
    assert len(CELEBA_ATTRIBUTES) == 40
    mapped = [canonical_attribute(raw) for raw in CELEBA_ATTRIBUTES]
    assert len({name for name, _ in mapped}) == 40
    assert all(name in attributes() for name, _ in mapped)
    assert [name for name, negated in mapped if negated] == ["beard"]


def test_registry_names_are_canonical_and_wordings_complete():
    for name, row in attributes().items():
        assert snake_case(name) == name
        assert row.question.endswith("?"), name
        assert len(row.question.split()) <= 8, name
        assert row.phrase in row.present or row.present, name
        assert row.present != row.absent, name


def test_an_attribute_outside_the_registry_has_a_generic_wording():
    row = attribute("pointed_ears")
    assert "pointed ears" in row.question
    assert row.present == "a face with pointed ears"
    assert canonical_attribute("Pointed-Ears") == ("pointed_ears", False)


def test_colour_families_have_distinct_words():
    for members in groups().values():
        assert len({row.value for row in members}) == len(members) >= 3


def test_fairface_bands_tile_the_ages_and_hold_their_midpoints():
    ages = np.arange(0, 110)
    bands = [band_of(age) for age in ages]
    assert None not in bands
    assert [b for i, b in enumerate(bands) if i == 0 or bands[i - 1] != b] == list(FAIRFACE_BANDS)
    for band in FAIRFACE_BANDS:
        assert band_of(band_midpoint(band)) == band
    assert band_midpoint("20-29") == 25.0


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("more than 70", "70+"),
        ("70+", "70+"),
        ("9-Mar", "3-9"),
        ("19-Oct", "10-19"),
        ("03-9", "3-9"),
    ],
)
def test_band_spellings(text, band):
    assert canonical_band(text) == band


@pytest.mark.parametrize("text", ["old", "29-20", "25", ""])
def test_not_a_band(text):
    with pytest.raises(UserError, match="not an age band"):
        canonical_band(text)


def test_good_labels_have_no_problems():
    labels = {
        "expression": "fear",
        "action_units": {"AU1": 4.5, "AU12": False},
        "attributes": {"beard": True},
        "age": 31.5,
        "age_band": "30-39",
        "head_pose": {"yaw": -40.0, "pitch": 0, "roll": 12.5},
        "gender": "female",
        "facial_actions": {"jawOpen": 0.4},
        "expression_votes": {"fear": 0.75, "surprise": 0.25},
        "compound_expression": "fearfully surprised",
        "parameters": {"light": [1, 2]},
    }
    assert validate_labels(labels) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"expression": "happy"}, "expression: 'happy'"),
        ({"action_units": {"au12": 1}}, "write it as AU12"),
        ({"action_units": {"AU12": 7}}, "within 0 to 5"),
        ({"action_units": {"AU12": float("nan")}}, "not a number"),
        ({"attributes": {"Beard": True}}, "write it as beard"),
        ({"attributes": {"beard": 1}}, "not true or false"),
        ({"attributes": [1]}, "found list"),
        ({"age": -3}, "within 0 to 130"),
        ({"age": True}, "not a number"),
        ({"head_pose": {"tilt": 0}}, "not one of yaw"),
        ({"head_pose": {"yaw": 200}}, "within -180 to 180"),
        ({"age_band": "more than 70"}, "write it as 70+"),
        ({"gender": "Male"}, "gender: 'Male'"),
        ({"expression_votes": {"happy": 1.0}}, "happy: not one of neutral"),
        ({"expression_votes": {"fear": 1.1}}, "fear: 1.1 is not a number within 0 to 1"),
        ({"expression_votes": {"fear": 0.6, "anger": 0.6}}, "sum to 1.2, more than 1"),
        ({"compound_expression": "happily sad"}, "compound_expression: 'happily sad'"),
        ({"mood": "fine"}, "not a label key"),
    ],
)
def test_bad_labels_are_named(labels, said):
    (problem,) = validate_labels(labels)
    assert said in problem


@pytest.mark.parametrize(
    ("labels", "which"),
    [
        ({"age": 25, "age_band": "30-39"}, "age and age_band"),
        ({"age": 40, "age_band": "30-39"}, "age and age_band"),
        ({"age": 64.2, "age_band": "70+"}, "age and age_band"),
        ({"gender": "female", "attributes": {"male": True}}, "gender and male"),
        ({"expression": "fear", "expression_votes": {"anger": 0.6}}, "expression and its votes"),
    ],
)
def test_labels_that_cannot_both_be_true(labels, which):
    assert validate_labels(labels) == []
    assert [found for found, _ in contradictions(labels)] == [which]


@pytest.mark.parametrize(
    "labels",
    [
        {"age": 30, "age_band": "30-39"},
        {"age": 29.6, "age_band": "30-39"},  # thirty, as one counts
        {"age": 39.9, "age_band": "30-39"},
        {"age": 104, "age_band": "70+"},
        {"gender": "male", "attributes": {"male": True}},
        {"expression": "fear", "expression_votes": {"anger": 0.6, "fear": 0.4}},
        {"age": 3, "gender": "male", "expression_votes": {"anger": 1}, "attributes": {}},
    ],
)
def test_labels_that_agree(labels):
    assert list(contradictions(labels)) == []


def test_leaks_match_words_not_substrings():
    held = ["smiling", "beard", "young"]
    innocent = ["nose", "The simile is fine", "Bearden", "youngster", "milestone", "AU12"]
    assert find_leaks(innocent, held) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("She SMILES.", "smiling"),
        ("a wide grin", "smiling"),
        ("mouth is slightly open", "mouth_open"),
        ("open-mouthed", "mouth_open"),
        ("AU25 lips part", "mouth_open"),
        ("mouth_closed", "mouth_open"),
        ("a blonde person", "blond_hair"),
        ("fair hair", "blond_hair"),
        ("AU43 (eye closure)", "eyes_closed"),
        ("eyes wide open", "eyes_closed"),
        ("no beards", "beard"),
    ],
)
def test_leaks_find_synonyms_negations_and_inflections(text, name):
    (leak,) = find_leaks([text], [name])
    assert (leak.attribute, leak.text) == (name, text)


def test_held_out_names_may_be_written_as_in_celeba():
    assert find_leaks(["Is the mouth open?"], ["Mouth_Slightly_Open"])[0].attribute == "mouth_open"
    assert find_leaks(["a beard"], ["No_Beard"])[0].attribute == "beard"


def test_every_attribute_finds_itself_in_its_own_wording():
    for name, row in attributes().items():
        assert len(find_leaks([row.phrase, row.question], [name])) == 2, name
        assert len(find_leaks(row.synonyms, [name])) == len(row.synonyms), name


# votes: neutral, happiness, surprise, ... contempt, unknown, no face; expected as the official code

EIGHT = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
SPLIT = {"neutral": 0.75, "happiness": 0.25}


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((8, 1, 1, 0, 0, 0, 0, 0, 0, 0), ("neutral", "neutral", {"neutral": 1.0})),
        ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), ("", "neutral", {"neutral": 0.5, "happiness": 0.5})),
        ((0, 0, 0, 0, 0, 0, 0, 3, 7, 0), ("", "contempt", {})),
        ((0, 5, 0, 0, 0, 0, 0, 0, 5, 0), ("", "happiness", {})),
        (
            (6, 2, 0, 0, 0, 0, 0, 0, 2, 0),
            ("neutral", "neutral", {"neutral": 0.75, "happiness": 0.25}),
        ),
        ((2, 2, 2, 2, 2, 0, 0, 0, 0, 0), ("", "neutral", {})),  # too many at the top
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), ("", "neutral", {})),
        ((0, 0, 0, 0, 0, 0, 0, 0, 0, 10), ("", "", {})),
    ],
)
def test_votes_become_targets(votes, expected):
    modes = [TARGETS[mode](votes, EIGHT) for mode in ("majority", "argmax", "probability")]
    assert ["".join(modes[0]), "".join(modes[1]), modes[2]] == list(expected)


# --- code maps

FIELDS = [
    (path.stem, field)
    for path in sorted(FOLDER.glob("*.yaml"))
    for field in yaml.safe_load(path.read_text(encoding="utf-8"))
]
WORDS = {  # what the codes of a field must cover; ages and colours differ from source to source
    "compound_expression": COMPOUND_EXPRESSIONS,
    "gender": GENDERS,
    "action_unit": (False, True),
    "attribute": (False, True),
    "service_test": (False, True),
    "split": ("train", "val", "test"),
    "race": ("white", "black", "asian"),
}


@pytest.mark.parametrize(("source", "field"), FIELDS)
def test_codes_are_a_bijection_onto_canonical_words(source, field):
    words = [word for word in codes(source, field).values() if word is not None]
    assert len(set(words)) == len(words)  # one code to a word; null is unknown
    if field == "folder" or field.startswith("expression"):
        eleven = {*EXPRESSIONS, *OTHER_EXPRESSIONS}
        assert set(words) in (set(BASIC7), set(EXPRESSIONS), eleven)
    elif field == "hair_color":
        assert set(words) <= {row.name for row in groups()["hair_color"]}
    elif field == "age_band":
        assert all(canonical_band(word) == word for word in words)
    else:
        assert set(words) == set(WORDS[field])
