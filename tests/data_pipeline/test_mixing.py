"""What a question weighs and which are kept: votes as targets, caps, sources side by side."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from source_fixtures import picture

from data_pipeline.build import build
from data_pipeline.manifest import summary
from data_pipeline.questions import QuestionSet, closed_questions, render_questions
from data_pipeline.questions.balance import WEIGHT_UNIT, count_answers, select, weights_of
from data_pipeline.questions.forms import digest
from data_pipeline.records import QA, FaceRecord, iter_records, write_dataset

VOTES = {"expression_votes": {"sadness": 0.6, "neutral": 0.3, "contempt": 0.1}}
FORMS = ("expression/word", "expression/sentence", "expression/choice")
EXAMPLE = Path(__file__).parents[2] / "docs" / "recipes" / "mix_vqa.yaml"


@pytest.fixture
def soft(tmp_path):
    def make(*forms, **settings):
        path = tmp_path / "soft.yaml"
        path.write_text(yaml.safe_dump({"forms": list(forms), "soft_labels": True, **settings}))
        return QuestionSet.load(path)

    return make


# --- soft labels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("classes", "shares"),
    [
        ("canonical8", {"sadness": 0.6, "neutral": 0.3, "contempt": 0.1}),
        ("basic7", {"sadness": 2 / 3, "neutral": 1 / 3}),  # of the votes the classes know
    ],
)
def test_one_question_is_answered_by_every_share(soft, form, classes, shares):
    asked = render_questions(VOTES, "a", 0, soft(form, expression_classes=classes))
    assert len({(qa.question, qa.choices) for qa in asked}) == 1
    said = {word: qa.weight for qa in asked for word in shares if word in qa.answer}
    assert said == pytest.approx(shares)
    assert sum(qa.weight for qa in asked) == pytest.approx(1)


@pytest.mark.parametrize("no_per_yes", [None, 1])
def test_yes_and_no_share_a_vote(soft, no_per_yes):
    settings = {"expression_classes": "canonical8", "no_per_yes": no_per_yes}
    asked = render_questions(VOTES, "a", 0, soft("expression/yes_no", **settings))
    said = {(qa.name, qa.answer): qa.weight for qa in asked}
    for word, share in VOTES["expression_votes"].items():
        assert said.pop((word, "yes")) == pytest.approx(share)
        assert said.pop((word, "no")) == pytest.approx(1 - share)
    assert set(said.values()) == {1.0}  # nobody voted for the rest
    assert len(said) == (3 if no_per_yes else 5)
    assert len({(qa.name, qa.question) for qa in asked}) == 3 + len(said)


def test_votes_train_and_the_label_is_scored(soft):
    labels = {**VOTES, "expression": "sadness"}
    (asked,) = closed_questions(labels, soft("expression/word"))
    assert asked.choices[int(asked.truth)] == "sadness"
    assert closed_questions(VOTES, soft("expression/word")) == []  # no leader, nothing to score
    assert len(render_questions(labels, "a", 0, soft("expression/word"))) == 2
    (hard,) = render_questions(labels, "a", 0, "compact", tasks=["expression"])
    assert (hard.answer, hard.weight) == ("sadness", 1.0)
    (alone,) = render_questions({"expression": "fear"}, "a", 0, soft("expression/word"))
    assert (alone.answer, alone.weight) == ("fear", 1.0)


def test_answers_count_by_their_weight():
    shares = {"fear": 0.75, "anger": 0.25}
    qas = [QA("expression", "all", "?", word, weight=share) for word, share in shares.items()]
    counts = {}
    for _ in range(4):
        count_answers(counts, qas, frozenset({"expression"}))
    count_answers(counts, [QA("age", "all", "?", "30")], frozenset({"expression"}))
    key = ("expression", "all")
    assert counts == {key: Counter(fear=3 * WEIGHT_UNIT, anger=WEIGHT_UNIT)}
    assert weights_of(counts) == weights_of({key: Counter(fear=3, anger=1)})


def face(number, split="train", **labels):
    name = f"s_{number}"
    image = str(labels.pop("image"))
    return FaceRecord(name, "s", split, name, image, labels)


def test_a_build_keeps_the_shares_in_every_split(tmp_path, soft):
    soft("expression/word", "age/years")
    picture(tmp_path / "a.png")
    with write_dataset(tmp_path / "faces") as writer:
        for number in range(40):
            labels = {**VOTES, "age": 30.0, "image": tmp_path / "a.png"}
            writer.add(face(number, "val" if number % 4 == 0 else "train", **labels))
    content = {
        "questions": "soft.yaml",
        "expression_classes": "canonical8",
        "sources": [{"source": "records", "root": "faces", "weight": 0.5}],
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    manifest = build(tmp_path / "r.yaml", tmp_path / "out")
    records = {split: list(iter_records(tmp_path / "out", [split])) for split in ("train", "val")}
    shares = VOTES["expression_votes"]
    for record in records["val"]:
        said = {qa.answer: qa.weight for qa in record.qa if qa.task == "expression"}
        assert said == pytest.approx(shares)
    # every answer has the same total over the training split, and a question's mean stays 1
    weights = manifest["answer_weights"]["expression"]["all"]
    assert weights == pytest.approx({word: 1 / (3 * share) for word, share in shares.items()}, 1e-4)
    for record in records["train"]:
        said = [qa.weight for qa in record.qa if qa.task == "expression"]
        assert said == pytest.approx([0.5 / 3] * 3, rel=1e-4)


# --- the cap


def conversation(count, name="all"):
    return [QA("vqa", name, f"question {n}?", f"answer {n}") for n in range(count)]


def test_of_a_conversation_every_question_has_its_chance():
    kept = Counter()
    for number in range(600):
        chosen = select(conversation(6), 2, {}, f"0/{number}")
        assert len(chosen) == 2
        kept.update(qa.question for qa in chosen)
    assert set(kept) == {f"question {n}?" for n in range(6)}
    assert min(kept.values()) > 140  # 200 expected


def test_names_that_stand_once_draw_by_their_name_alone():
    """So a change of wording leaves the choice as it was."""
    qas = [QA("attribute", f"a{n}", f"{n}?", "no") for n in range(30)]
    for key in ("3/s_1", "3/s_2"):
        draws = {qa.name: digest("select", key, "attribute", qa.name) for qa in qas}
        expected = set(sorted(draws, key=draws.__getitem__, reverse=True)[:3])
        assert {qa.name for qa in select(qas, 3, {}, key)} == expected


def test_the_answers_of_one_question_stay_together():
    soft = [QA("expression", "all", "?", word, weight=0.5) for word in ("fear", "anger")]
    ages = [QA("age", f"a{n}", "?", "30") for n in range(4)]
    seen = Counter()
    for number in range(200):
        chosen = select([*soft, *ages], 2, {}, f"k{number}")
        words = [qa.answer for qa in chosen if qa.task == "expression"]
        assert words in ([], ["fear", "anger"])
        assert len(chosen) == 2 + bool(words)
        seen[bool(words)] += 1
    assert seen[True] > seen[False] > 0  # its task is as heavy as the four ages together


# --- general questions against forgetting


def plant(root):
    """Faces in class folders, and LLaVA's JSON beside its pictures."""
    for number in range(40):
        word = ("happy", "sad")[number % 2]
        picture(root / "faces" / word / f"{number}.png", shade=number)
    rows = []
    for number in range(12):
        image = f"coco/train2017/{number:012d}.jpg"
        picture(root / "llava" / image, shade=100 + number)
        turns = [
            ("human", "<image>\nWhat is on the table?"),
            ("gpt", f"{number} apples."),
            ("human", "And below it?"),
            ("gpt", "A dog."),
        ]
        talk = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": f"{number:012d}", "image": image, "conversations": talk})
    (root / "llava" / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))


def test_the_example_mixes_general_questions_in(tmp_path):
    plant(tmp_path)
    (tmp_path / "mix.yaml").write_text(EXAMPLE.read_text())
    manifest = build(tmp_path / "mix.yaml", tmp_path / "out", ["sources.1.take=first:8"])
    faces, general = manifest["sources"]
    records = [r for r in iter_records(tmp_path / "out", ["train"]) if r.source != "faces"]
    talks = [qa for record in records for qa in record.qa]
    assert {(qa.task, qa.weight) for qa in talks} == {("vqa", 0.5)}
    assert general["kept"] == {"train": 8}
    assert (general["rows_not_taken"], general["train_questions"]) == (4, 16)
    assert general["train_loss_share"] + faces["train_loss_share"] == pytest.approx(1, abs=1e-4)
    said = " ".join(summary(manifest).split())
    assert "took 8 of 12 rows by first:8: train 8" in said
    assert "weight 0.5: 16 training questions" in said
