"""Two annotators: consensus, disagreements, agreement; human labels beside theirs; recipes."""

import json
from collections import Counter

import pytest
import yaml
from annotate_stub import ASKED, Step, good, lines, run, said, serving, spec, states, write_faces

from data_pipeline.annotate.agreement import Agreement, consensus, statistics
from data_pipeline.annotate.finish import _merged
from data_pipeline.build import build
from data_pipeline.records import iter_records, read_manifest

pytest.importorskip("httpx2", reason="pip install 'face-mllm[annotate]'")


def contrary(number, _before):
    """Says the opposite about smiling, refuses face 4, and has its own captions."""
    if number == 4:
        return said("I can't help with that.")
    turned = {"yes": "no", "no": "yes", "unknown": "unknown"}[states(number)["smiling"]]
    return good(number, smiling=turned, caption=f"Someone, number {number}.")


def smiling(number, _before):
    return good(number, caption=f"A smiling face {number}.")


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / "faces")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_only_what_two_agree_on_is_kept(faces, out):
    with serving(smiling) as first, serving(contrary) as second:
        manifest = run(faces, out, spec(first, "a"), spec(second, "b"))
    found = {int(record.id[-1]): record for record in iter_records(out)}
    assert sorted(found) == [0, 1, 2, 3, 5]  # face 4 was refused by one
    for number, record in found.items():
        agreed = {k: v == "yes" for k, v in states(number).items() if v != "unknown"}
        agreed.pop("smiling", None)
        assert record.labels.get("attributes", {}) == agreed
        assert record.source == "web+openai:a&openai:b"
        disputed = states(number)["smiling"] != "unknown"
        words = f"Someone, number {number}." if disputed else f"A smiling face {number}."
        assert record.caption == words  # no caption speaks of what is disputed
    rows = lines(out / "disagreements.jsonl")
    assert {row["id"] for row in rows} == {f"web_{n}" for n in (0, 2, 3, 5)}
    assert rows[0]["said"] == {"openai:a": "no", "openai:b": "yes"}
    (refused,) = lines(out / "refused.jsonl")
    assert (refused["id"], refused["annotator"]) == ("web_4", "openai:b")
    about = manifest["annotation"]
    assert about["disagreements"] == {"smiling": 4}
    (agreement,) = about["agreement"]
    assert agreement["between"] == ["openai:a", "openai:b"]
    assert agreement["attributes"]["eyeglasses"]["percent"] == 100
    assert agreement["attributes"]["eyeglasses"]["kappa"] == 1
    smiles = agreement["attributes"]["smiling"]
    assert (smiles["n"], smiles["n_known"], smiles["percent_known"]) == (5, 4, 0)
    assert smiles["kappa_known"] < 0


def test_agreement_with_human_labels_is_told(tmp_path, out):
    human = {"expression": "anger", "attributes": {"smiling": True, "bald": False}}
    faces = write_faces(tmp_path / "faces", labels=lambda n: human if n < 4 else {})
    with serving() as stub:
        manifest = run(faces, out, spec(stub))
    (agreement,) = manifest["annotation"]["agreement"]
    assert agreement["between"] == ["openai:stub", "labels of the input"]
    assert list(agreement["attributes"]) == ["smiling"]
    assert agreement["attributes"]["smiling"]["n"] == 4
    record = next(iter_records(out))
    assert set(record.labels["attributes"]) <= set(ASKED)
    assert "expression" not in record.labels


def test_human_labels_stay_and_win_when_asked_for(tmp_path, out):
    human = {"expression": "anger", "attributes": {"smiling": True, "bald": False}}
    faces = write_faces(tmp_path / "faces", labels=lambda n: human)
    with serving() as stub:
        manifest = run(faces, out, spec(stub), keep_labels=True)
    record = next(iter_records(out))  # the machine says: not smiling, eyeglasses, beard unknown
    assert record.labels["expression"] == "anger"
    assert record.labels["attributes"] == {"smiling": True, "bald": False, "eyeglasses": True}
    assert lines(out / "annotations.jsonl")[0]["answers"]["openai:stub"]["smiling"] == "no"
    assert manifest["annotation"]["labels_by"] == "machine and input"
    assert "were kept" in (out / "README.md").read_text()


def test_a_known_gender_is_not_contradicted():
    machine = {"attributes": {"male": True, "smiling": False}}
    assert _merged({"gender": "female"}, machine)["attributes"] == {"smiling": False}
    assert _merged({"age": 3}, machine)["attributes"] == machine["attributes"]


def test_a_recipe_is_built_once_and_its_sources_are_told(faces, out, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    source = {"source": "records", "root": str(faces), "take": "first:3"}
    recipe.write_text(yaml.safe_dump({"sources": [source]}))
    with serving() as stub:
        manifest = run(recipe, out, spec(stub))
    assert [record.id for record in iter_records(out)] == ["web_0", "web_1", "web_2", "web_5"]
    assert manifest["input"]["sources"][0]["root"] == str(faces)
    assert manifest["input"]["fingerprint"]


def test_what_was_annotated_becomes_questions(faces, out, tmp_path):
    with serving() as stub:
        run(faces, out, spec(stub))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"sources": [{"source": "records", "root": str(out)}]}))
    build(recipe, tmp_path / "qa")
    records = list(iter_records(tmp_path / "qa"))
    assert {record.source for record in records} == {"web+openai:stub"}
    tasks = {qa.task for record in records for qa in record.qa}
    assert {"attribute", "caption"} <= tasks
    card = (out / "README.md").read_text()
    assert "`openai:stub`" in card
    assert "Machine annotations" in card
    assert read_manifest(out)["splits"]["test"]["faces"] == 1


def test_without_captions_none_is_asked(faces, out):
    with serving(lambda n, _: Step(_bare(n))) as stub:
        run(faces, out, spec(stub, answers="prompt", temperature="none"), caption=False)
    assert all(record.caption == "" for record in iter_records(out))
    assert {"response_format", "temperature"} & stub.bodies[0].keys() == set()


def _bare(number):
    text = f"Sure!\n```json\n{json.dumps(states(number))}\n```"
    return said([{"type": "text", "text": text}]).body


def test_consensus_of_captions():
    first = {"caption": "He has a beard.", "beard": "yes", "smiling": "no"}
    second = {"caption": "The beard is gray.", "beard": "no", "smiling": "no"}
    agreed, disputed = consensus([first, second])
    assert agreed == {"caption": "", "beard": "unknown", "smiling": "no"}
    assert disputed == {"beard": ["yes", "no"]}
    assert consensus([first]) == (first, {})


@pytest.mark.parametrize(
    "pairs, percent, kappa",
    [
        ({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}, 70.0, 0.4),
        ({("yes", "yes"): 9}, 100.0, None),
        ({("yes", "no"): 1, ("no", "yes"): 1}, 0.0, -1.0),
    ],
)
def test_kappa(pairs, percent, kappa):
    """The first row is the textbook example."""
    found = statistics(Counter(pairs))
    assert (found["percent"], found["kappa"]) == (percent, kappa)


def test_no_faces_in_common():
    assert Agreement(("a", "b")).as_dict()["all"]["percent"] is None
