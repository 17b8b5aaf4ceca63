"""The words of every question, frozen: a change of wording shows up here until it is accepted."""

from pathlib import Path

import pytest
from source_fixtures import fixtures

from data_pipeline.questions import QuestionSet, closed_questions, render_questions
from data_pipeline.questions.question_set import HERE
from data_pipeline.sources import get_source

GOLDEN = Path(__file__).parent / "golden"
SETS = sorted(path.stem for path in (HERE / "sets").glob("*.yaml"))
FIXTURES = {module.NAME: module for module in fixtures()}
FACES_PER_CASE = 3
FEW_CHOICES = 8

FACES = {
    "everything": {
        "expression": "happiness",
        "action_units": {"AU1": 0, "AU6": 2.6, "AU12": 4.0, "AU25": True, "AU43": False},
        "attributes": {
            "smiling": True,
            "beard": False,
            "wearing_hat": False,
            "eyeglasses": True,
            "black_hair": True,
            "brown_hair": False,
            "blond_hair": False,
            "mouth_open": True,
        },
        "age": 33.4,
        "head_pose": {"yaw": -14.2, "pitch": 0.4, "roll": 31.0},
        "gender": "female",
    },
    "sad by votes": {
        "expression_votes": {"sadness": 0.6, "neutral": 0.3, "fear": 0.1},
        "expression": "sadness",
        "action_units": {"AU1": 3, "AU4": 2, "AU15": 2, "AU17": 1},
    },
    "compound": {"compound_expression": "fearfully surprised", "gender": "male"},
    "a band alone": {"age_band": "70+"},
    "one unit": {"action_units": {"AU14": True}},
    "nothing active": {"action_units": {"AU1": False, "AU12": 0}, "expression": "neutral"},
    "only what it lacks": {"attributes": {"beard": False, "bald": False}},
    "one axis": {"head_pose": {"yaw": 95.0, "roll": -4.9}},
    "contempt": {"expression": "contempt"},
    "unknown": {},
}
HELD_OUT = ("smiling", "mouth_open", "eyes_closed")


def choices(words):
    if len(words) > FEW_CHOICES:
        return f"[{words[0]} .. {words[-1]}, {len(words)} choices]"
    return f"[{' / '.join(words)}]" if words else ""


def lines(labels, key, question_set, held_out=()):
    """Training questions with answers, then the scored ones with their truth."""
    for qa in render_questions(labels, key, 0, question_set, held_out, caption="a face"):
        share = "" if qa.weight == 1 else f" x {qa.weight:g}"
        yield f"{qa.task} {qa.name} | {qa.question} | {qa.answer}{share} | {choices(qa.choices)}"
    for asked in closed_questions(labels, question_set, held_out):
        truth = asked.truth if asked.values else asked.choices[asked.truth]
        words = choices(asked.choices)
        yield f"scored {asked.task} {asked.name} | {asked.question} | {truth} | {words}"


def page(sections):
    """Titles with their lines; no line ends in a blank."""
    parts = ("\n".join([f"# {title}", *body]) for title, body in sections)
    return "\n".join(line.rstrip(" |") for line in "\n\n".join(parts).splitlines()) + "\n"


@pytest.mark.parametrize("name", SETS)
def test_shipped_sets(name, golden):
    sections = [(title, lines(labels, title, name)) for title, labels in FACES.items()]
    held = lines(FACES["everything"], "held out", name, HELD_OUT)
    sections.append((f"held out: {', '.join(HELD_OUT)}", held))
    golden(GOLDEN / f"{name}.txt", page(sections))


def test_settings_of_a_set(golden):
    """What a set may ask for beyond the shipped ones."""
    chosen = QuestionSet.load(
        "full",
        ask_unknown=["expression", "AU4", "AU12", "bangs", "age", "yaw", "gender"],
        no_per_yes=1.0,
        soft_labels=True,
        expression_classes="canonical8",
    )
    sections = [(title, lines(labels, title, chosen)) for title, labels in FACES.items()]
    golden(GOLDEN / "settings.txt", page(sections))


@pytest.mark.parametrize("name", FIXTURES)
def test_sources(name, golden):
    """The first faces of every case of every source that has a fixture."""
    sections = []
    source = get_source(name)
    for case in FIXTURES[name].CASES:
        targets = source.protocol(case.protocol, source.options(**case.options)).targets
        for key, (_, labels) in list(case.records.items())[:FACES_PER_CASE]:
            for question_set in SETS:
                title = f"{case.protocol or 'default'} {key} {question_set}"
                asked = QuestionSet.load(question_set).under(targets)
                sections.append((title, lines(labels, key, asked)))
    golden(GOLDEN / "sources" / f"{name}.txt", page(sections))


def test_no_snapshot_is_left_over(golden):
    expected = {GOLDEN / f"{name}.txt" for name in (*SETS, "settings")}
    expected |= {GOLDEN / "sources" / f"{name}.txt" for name in FIXTURES}
    left_over = set(GOLDEN.rglob("*.txt")) - expected
    if golden.accepting:
        for path in left_over:
            path.unlink()
    else:
        assert left_over == set()


def test_a_missing_or_changed_snapshot_fails(tmp_path, golden):
    if golden.accepting:
        pytest.skip("accepting")
    with pytest.raises(AssertionError, match=r"no snapshot new\.txt"):
        golden(tmp_path / "new.txt", "words\n")
    (tmp_path / "new.txt").write_text("words\n")
    golden(tmp_path / "new.txt", "words\n")
    with pytest.raises(AssertionError, match="accept-golden"):
        golden(tmp_path / "new.txt", "other words\n")
