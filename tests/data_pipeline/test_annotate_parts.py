"""The parts of ``data annotate`` on their own: reading, pace, budget, journal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.annotate.journal import Entry, held_folder, open_journal
from data_pipeline.annotate.pace import Budget, EndingError, Pace, Stop, backoff, retry_after
from data_pipeline.annotate.questions import (
    MalformedError,
    Questions,
    RefusalError,
    asked_attributes,
    labels_of,
)
from data_pipeline.annotate.reply import scrubbed
from data_pipeline.annotate.spec import parse_annotator
from face_mllm.errors import UserError

QUESTIONS = Questions(("smiling", "bald"))
RIGHT = {"caption": "A face.", "smiling": "yes", "bald": "unknown"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RIGHT),
        f"Here it is:\n```json\n{json.dumps(RIGHT, indent=2)}\n```\nAnything else?",
        json.dumps(RIGHT | {"smiling": " Yes ", "caption": "A\n face."}),
        json.dumps(RIGHT) + json.dumps(RIGHT),
    ],
)
def test_right_answers(text):
    assert QUESTIONS.read(text) == RIGHT
    assert labels_of(RIGHT) == {"smiling": True}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no JSON object"),
        ("{", "no JSON object"),
        ("null", "no JSON object"),
        ("{" * 100_000, "no JSON object"),
        (json.dumps({k: v for k, v in RIGHT.items() if k != "bald"}), "bald: Field required"),
        (json.dumps(RIGHT | {"bald": True}), "bald: Input should be"),
        (json.dumps(RIGHT | {"bald": None}), "bald: Input should be"),
        (json.dumps(RIGHT | {"caption": " "}), "caption: String should have"),
        (json.dumps(RIGHT | {"caption": "a" * 2000}), "caption: String should have"),
        (json.dumps(RIGHT | {"mood": "fine"}), "mood: Extra inputs"),
    ],
)
def test_malformed_answers(text, reason):
    with pytest.raises(MalformedError, match=reason):
        QUESTIONS.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, I can't assist with that.",
        "Sorry, but I cannot identify people.",
        "As an AI model I do not describe faces.",
        json.dumps(RIGHT | {"caption": "I cannot describe this person."}),
    ],
)
def test_refusals(text):
    with pytest.raises(RefusalError):
        QUESTIONS.read(text)


@given(st.text(max_size=80))
def test_any_text_is_judged(text):
    with pytest.raises((MalformedError, RefusalError)):
        QUESTIONS.read(text)


def test_schema_and_model_ask_the_same():
    schema = QUESTIONS.model.model_json_schema()
    assert list(schema["properties"]) == QUESTIONS.schema["required"]
    assert schema["additionalProperties"] is QUESTIONS.schema["additionalProperties"] is False
    for name in QUESTIONS.schema["required"]:
        assert f'"{name}": ' in QUESTIONS.prompt


def test_attributes_are_canonical():
    names = asked_attributes(["No_Beard", "beard", "Smiling", "tattoo on the cheek", ""])
    assert names == ("beard", "smiling", "tattoo_on_the_cheek")
    with pytest.raises(UserError, match="did you mean 'sunglasses'"):
        asked_attributes(["sunglases"])
    with pytest.raises(UserError, match="cannot be an attribute"):
        asked_attributes(["Caption"])


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    "requests, tokens, seconds",
    [(60, None, 9), (None, 6000, 90), (60, 6000, 90), (None, None, 0)],
)
def test_pace(requests, tokens, seconds):
    clock = Clock()
    pace = Pace(requests, tokens, clock.sleep, clock)
    for _ in range(10):
        pace.wait(1000)
    assert clock.now - 100 == pytest.approx(seconds)


def test_a_hold_holds():
    clock = Clock()
    pace = Pace(None, None, clock.sleep, clock)
    pace.hold(30)
    pace.wait(1)
    assert clock.now == 130


def test_backoff_doubles_and_ends():
    waits = [backoff(attempt, 1.0) for attempt in range(12)]
    for attempt, wait in enumerate(waits):
        assert min(60, 2**attempt) / 2 <= wait <= min(60, 2**attempt)


@pytest.mark.parametrize(
    "value, seconds",
    [(None, 0), ("3", 3), ("2.5", 2.5), ("-1", 0), ("soon", 0), ("Sun, 06 Nov 1994 08:49:37", 0)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_a_date():
    assert retry_after("Fri, 31 Dec 2199 23:59:59 GMT") > 1e9


def test_budget_sets_aside_what_is_under_way():
    budget = Budget(1.0, spent=0.2)
    budget.reserve(0.5)
    with pytest.raises(UserError, match="stopped before --max-cost 1"):
        budget.reserve(0.5)
    budget.settle(0.5, 0.1)
    budget.reserve(0.5)
    assert budget.spent == pytest.approx(0.3)


def test_a_stop_ends_every_wait():
    stop = Stop()
    stop.sleep(0)
    stop.set()
    with pytest.raises(EndingError):
        stop.sleep(60)


ENTRIES = [
    Entry("a", 0, "answer", {"smiling": "yes"}, tokens_in=5, cost=0.25),
    Entry("b", 0, "unanswered", reason="timed out", cost=0.25),
    Entry("a", 1, "malformed", reason="no JSON object", raw="ein Lächeln \ud800"),
]


@pytest.mark.parametrize("tail", [b"", b'{"id": "c", "annot'])
def test_journal_goes_on_after_a_torn_line(tmp_path, tail):
    with held_folder(tmp_path / "out") as folder:
        with open_journal(folder, {"x": 1}) as journal:
            for entry in ENTRIES:
                journal.add(entry)
        with journal.path.open("ab") as file:
            file.write(tail)
        with open_journal(folder, {"x": 1}) as journal:
            assert journal.settled(0, "a")
            assert journal.settled(1, "a")
            assert not journal.settled(0, "b")
            assert not journal.settled(0, "c")
            assert journal.entry(0, "a") == ENTRIES[0]
            assert journal.entry(0, "c") is None
            assert (journal.used(0).tokens_in, journal.used(0).cost) == (5, 0.5)
            journal.add(Entry("b", 0, "answer"))
            assert journal.settled(0, "b")
        assert len(journal.path.read_bytes().splitlines()) == 4


def test_journal_refuses_other_settings_and_strange_lines(tmp_path):
    with held_folder(tmp_path / "out") as folder:
        with open_journal(folder, {"x": 1}):
            pass
        with open_journal(folder, {"x": 2}) as journal:  # nothing was asked yet
            journal.add(ENTRIES[0])
        with pytest.raises(UserError, match="x differ"), open_journal(folder, {"x": 1}):
            pass
        journal.path.write_text("{}\n")
        with pytest.raises(UserError, match=r"journal\.jsonl:1"), open_journal(folder, {"x": 2}):
            pass


def test_scrubbing():
    text = scrubbed(f"key k-1, data:image/png;base64,{'Ab1/' * 30} and {'Zz9+' * 80}", "k-1")
    assert text == "key [key], [picture] and [...]"
    folded = "\n".join(["data:image/png;base64," + "Ab1/" * 19, "Zz9+" * 19, "end"])
    assert scrubbed(folded) == "[picture]\nend"


def test_specs():
    spec = parse_annotator("openai:org/m-1,base_url=https://h.example/v1/,temperature=none")
    assert (spec.base_url, spec.label, spec.temperature) == (
        "https://h.example/v1",
        "openai:m-1",
        None,
    )
    assert "base_url" not in spec.identity()
    assert parse_annotator("hf:some/model,batch=4,name=Local").label == "Local"


def test_a_model_folder_is_known_by_what_is_in_it(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = parse_annotator(f"artifact:{folder}").identity()
    assert before["model"] == "model"
    (folder / "config.json").write_text("[]")
    assert parse_annotator(f"artifact:{folder}").identity() != before


def test_an_empty_journal_folder_does_not_stay(tmp_path):
    with held_folder(tmp_path / "out") as folder, open_journal(folder, {}):
        assert folder.is_dir()
    assert not folder.exists()
    with held_folder(tmp_path / "out") as folder, open_journal(folder, {}) as journal:
        journal.add(ENTRIES[0])
    assert folder.is_dir()
