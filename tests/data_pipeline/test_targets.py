"""The protocol decides what an answer is, from the build to the evaluation."""

import json

import pytest
import yaml
from source_fixtures import affectnet2021, disfa, ferplus, picture

from data_pipeline.build import build
from data_pipeline.questions import QuestionSet
from data_pipeline.records import iter_records, read_manifest
from eval.run import asking_for
from face_mllm.errors import UserError

UNBALANCED = {"wordings": ["Which expression?"]}


def made(root, name, *sources, **changes):
    """Build a recipe of these sources and return its manifest and records by id."""
    path = root / f"{name}.yaml"
    content = {"questions": "full", "min_side": 1, "sources": list(sources), **changes}
    path.write_text(yaml.safe_dump(content))
    manifest = build(path, root / name)
    return manifest, {record.id: record for record in iter_records(root / name)}


@pytest.fixture
def disfa_by(tmp_path):
    disfa.write(tmp_path / "disfa")

    def by(threshold, **changes):
        entry = {
            "source": "disfa",
            "root": "disfa",
            "protocol": f"disfa/3fold-ge{threshold}-fold1",
            "frame_offset": -1,
            "images": "Frames",
        }
        return made(tmp_path, f"ge{threshold}", {**entry, **changes})

    return by


def answers(record, task):
    return {qa.name: qa.answer for qa in record.qa if qa.task == task}


def graded(records, grade):
    """A record with a unit of this grade, and the unit."""
    for record in records.values():
        for unit, value in record.labels["action_units"].items():
            if value == grade:
                return record, unit
    raise AssertionError(f"no unit of grade {grade}")


@pytest.mark.parametrize(("threshold", "said"), [(1, "yes"), (2, "no")])
def test_the_threshold_of_the_protocol_decides(disfa_by, tmp_path, threshold, said):
    manifest, records = disfa_by(threshold)
    record, unit = graded(records, 1)
    assert answers(record, "action_unit")[unit] == said
    assert answers(record, "action_unit_intensity")[unit] == "1"  # the grade is not lost
    assert (unit in answers(record, "action_unit_list")["all"].split(", ")) is (said == "yes")
    beside = [r for r in records.values() if r.split == record.split]
    active = sum(r.labels["action_units"][unit] >= threshold for r in beside)
    counted = manifest["splits"][record.split]["labels"]["action_units"][unit]
    assert counted.get("active", 0) == active
    name = f"disfa/3fold-ge{threshold}-fold1"
    (entry,) = manifest["sources"]
    assert entry["protocols"] == {"disfa": {"name": name, "active_threshold": threshold}}


@pytest.mark.parametrize("threshold", [1, 2])
def test_evaluation_scores_what_was_asked(disfa_by, tmp_path, threshold):
    manifest, records = disfa_by(threshold)
    asking = asking_for(manifest, ["action_unit"])
    assert asking.protocols == {"disfa": f"disfa/3fold-ge{threshold}-fold1"}
    record, unit = graded(records, 1)
    asked = {question.name: question for question in asking.of(record)}
    assert asked[unit].choices[int(asked[unit].truth)] == ("yes" if threshold == 1 else "no")


def test_captions_speak_of_what_is_active(disfa_by):
    _, records = disfa_by(1)
    record, _ = graded(records, 1)
    assert record.caption
    assert "no active action units" not in record.caption


def test_a_question_set_does_not_overrule_it(disfa_by, tmp_path):
    (tmp_path / "four.yaml").write_text("forms: [action_unit/yes_no]\nactive_threshold: 4\n")
    entry = {"source": "disfa", "root": "disfa", "frame_offset": -1, "images": "Frames"}
    manifest, records = made(tmp_path, "mine", entry, questions="four.yaml")
    assert manifest["question_set"]["active_threshold"] == 4
    record, unit = graded(records, 3)
    assert answers(record, "action_unit")[unit] == "yes"


def test_a_rebuilt_dataset_keeps_it(disfa_by, tmp_path):
    disfa_by(1)
    rebuilt, records = made(tmp_path, "again", {"source": "records", "root": "ge1"})
    record, unit = graded(records, 1)
    assert answers(record, "action_unit")[unit] == "yes"
    (entry,) = rebuilt["sources"]
    assert entry["protocol"] == "records/as-built"
    assert asking_for(rebuilt, None).protocols == {"disfa": "disfa/3fold-ge1-fold1"}
    named = {"source": "records", "root": "ge1", "name": "mine"}
    assert made(tmp_path, "named", named)[0]["sources"][0]["protocols"] == {
        "mine": {"name": "disfa/3fold-ge1-fold1", "active_threshold": 1}
    }


def test_one_name_has_one_meaning(disfa_by, tmp_path):
    both = [
        {
            "source": "disfa",
            "root": "disfa",
            "protocol": f"disfa/3fold-ge{threshold}-fold1",
            "frame_offset": -1,
            "images": "Frames",
            "take": f"first:{threshold}",
        }
        for threshold in (1, 2)
    ]
    with pytest.raises(UserError, match="'disfa' is read by protocols that disagree"):
        made(tmp_path, "both", *both)


@pytest.mark.parametrize(("classes", "count"), [("8class", 8), ("7class", 7)])
def test_the_classes_of_the_protocol_decide(tmp_path, classes, count):
    affectnet2021.write(tmp_path / "affectnet")
    entry = {
        "source": "affectnet2021",
        "root": "affectnet",
        "protocol": f"affectnet2021/{classes}",
    }
    manifest, records = made(tmp_path, "out", entry)
    chosen = [qa for record in records.values() for qa in record.qa if qa.task == "expression"]
    assert {len(qa.choices) for qa in chosen} == {count}
    asking = asking_for(read_manifest(tmp_path / "out"), ["expression"])
    assert {len(asked.choices) for r in records.values() for asked in asking.of(r)} == {count}
    assert manifest["question_set"]["expression_classes"] == "basic7"  # of what does not say


@pytest.mark.parametrize(("protocol", "soft"), [("soft", True), ("argmax8", False)])
def test_the_protocol_trains_on_votes(tmp_path, protocol, soft):
    (tmp_path / "ferplus").mkdir()
    ferplus.write(tmp_path / "ferplus")
    entry = {"source": "ferplus", "root": "ferplus", "protocol": f"ferplus/{protocol}"}
    manifest, records = made(tmp_path, "out", entry)
    assert manifest["sources"][0]["protocols"]["ferplus"].get("soft_labels", False) is soft
    mixed = False
    for record in records.values():
        said = {qa.answer for qa in record.qa if qa.task == "expression"}
        votes = record.labels.get("expression_votes", {record.labels.get("expression"): 1})
        assert said == set(votes)
        mixed |= len(said) > 1
    assert mixed is soft


@pytest.mark.parametrize("soft", [True, False])
def test_votes_of_a_table_are_trained_on_when_asked_for(tmp_path, soft):
    picture(tmp_path / "a.png")
    (tmp_path / "faces.csv").write_text("file,part,happy,sad,fear\na.png,train,3,1,0\n")
    columns = {"image": "file", "split": "part", "expression_votes": ["happy", "sad", "fear"]}
    entry = {"source": "table", "root": "faces.csv", "columns": columns, "tasks": ["expression"]}
    forms = {"forms": ["expression/word"], "templates": {"expression/word": UNBALANCED}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(forms))
    _, records = made(tmp_path, "out", entry, questions="mine.yaml", soft_labels=soft)
    said = {qa.answer: qa.weight for record in records.values() for qa in record.qa}
    assert said == ({"happiness": 0.75, "sadness": 0.25} if soft else {"happiness": 1.0})


def test_what_is_not_known_is_asked_when_the_recipe_says_so(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "faces.csv").write_text("file,part,bangs\na.png,train,\n")
    columns = {"image": "file", "split": "part", "attributes": ["bangs"]}
    entry = {"source": "table", "root": "faces.csv", "columns": columns, "tasks": ["attribute"]}
    _, records = made(tmp_path, "silent", entry)
    assert not records["faces_a"].qa
    manifest, records = made(tmp_path, "asked", entry, ask_unknown=["Bangs"])
    assert {(qa.name, qa.answer) for qa in records["faces_a"].qa} == {("bangs", "cannot be told")}
    assert manifest["question_set"]["ask_unknown"] == ["bangs"]


def test_a_set_under_a_protocol_renders_anew():
    asked = QuestionSet.load("compact")
    assert len(asked.classes) == 7  # what is cached of the one is not the other's
    under = asked.under({"expression_classes": "canonical8", "active_threshold": 1})
    assert len(under.classes) == len(under.context().classes) == 8
    assert under.context().threshold == 1
    assert asked.under({}) is asked
    assert json.loads(asked.model_dump_json())["active_threshold"] == 2
