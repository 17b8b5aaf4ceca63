import csv
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from source_fixtures import disfa, fixtures, picture, root_of

from data_pipeline import sources as registry
from data_pipeline.inspect import candidates, inspect
from data_pipeline.inspected import Inspection, Pictures, Reading
from data_pipeline.labels.expressions import CLASS_SETS
from data_pipeline.protocols import Protocol
from data_pipeline.records import FaceRecord
from data_pipeline.sources import get_source
from data_pipeline.sources.base import Dropped, Source, Variant
from face_mllm.cli import main
from face_mllm.errors import UserError


def read_toy(root, options, protocol):
    """``list.txt``: name, expression or ``?``; names that begin with v are for validation."""
    lists = root / "list.txt"
    if not lists.is_file():
        raise UserError(f"{lists}: not found", "unpack the labels too")
    for number, line in enumerate(lists.read_text().split("\n"), start=1):
        name, _, word = line.partition(" ")
        if word == "bad":
            yield Dropped("no face", f"list.txt:{number}")
            continue
        labels = {} if word == "?" else {"expression": word}
        if protocol.settings.get("units"):
            labels["action_units"] = {"AU12": 3, "AU2": 0}
        split = "val" if name.startswith("v") else "train"
        image = str(root / f"{name}.png")
        yield FaceRecord(f"toy_{name}", "toy", split, f"toy_{name}", image, labels)


def detect_toy(root):
    if not (root / "toy.md").is_file():
        return None
    missing = () if (root / "list.txt").is_file() else ("list.txt",)
    return Variant("toy release 2", missing, ("names are lower case",))


TOY = Source(
    "toy",
    "a toy",
    read_toy,
    protocols={
        "toy/all": Protocol(name="toy/all", about="every face", published={"train": 2, "val": 1}),
        "toy/more": Protocol(name="toy/more", published={"all": 5}, settings={"units": True}),
    },
    detect=detect_toy,
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A registered toy source and a complete distribution of it."""
    known = {**registry.sources(), "toy": TOY}
    for module in ("data_pipeline.sources.sources", "data_pipeline.inspect.sources"):
        monkeypatch.setattr(module, lambda: known)
    root = tmp_path / "toys"
    for name in ("a", "b", "v"):
        picture(root / f"{name}.png")
    (root / "toy.md").write_text("")
    (root / "list.txt").write_text("a happiness\nb ?\nc bad\nv anger")
    return root


def rows(text):
    """The table rows of a report: first word -> the other words."""
    lines = (line.split() for line in text.splitlines() if line.strip())
    return {words[0]: words[1:] for words in lines}


def test_a_known_folder_is_named_read_and_compared(toy):
    found = inspect(toy)
    assert found.ok
    assert found.source.name == "toy"
    said = rows(found.text)
    assert "toy: toy release 2" in found.text
    assert "note: names are lower case" in found.text
    assert said["train"] == ["2", "2", "0"]
    assert said["val"] == ["1", "1", "0"]
    assert said["expression"][:2] == ["2", "1"]  # known, unknown
    assert "anger 1" in found.text
    assert "no face" in found.text
    assert "list.txt:3" in found.text
    assert "3 files listed, all looked for, 0 missing or empty" in found.text


def test_every_protocol_is_read_and_units_come_by_number(toy):
    found = inspect(toy, every_protocol=True)
    assert [reading.protocol.name for reading in found.readings] == ["toy/all", "toy/more"]
    assert not found.ok  # five were published in all
    assert rows(found.text)["all"] == ["3", "5", "-2"]
    assert found.text.index("AU2 ") < found.text.index("AU12 ")


@pytest.mark.parametrize(
    ("published", "ok", "said"),
    [
        ({"anger": 2, "fear": 1}, True, ""),
        ({"anger": 1, "fear": 2}, False, "numbers its classes otherwise"),
        ({"anger": 2, "sadness": 1}, False, "numbers its classes otherwise"),
        ({"anger": 3}, False, "-1"),
    ],
)
def test_expressions_are_counted_against_the_published_ones(toy, published, ok, said):
    (toy / "list.txt").write_text("a anger\nb fear\nv anger\nv2 ?\na2 anger")
    for name in ("v2", "a2"):
        picture(toy / f"{name}.png")
    by = Protocol(name="toy/named", published_expressions={"train": published})
    reading = Reading(by)
    for row in read_toy(toy, None, by):
        reading.add(row)
    assert reading.ok is ok
    text = Inspection(TOY, toy, None, [reading]).text
    assert said in text
    assert ("expressions of train" in text) is not ok


def test_published_expressions_add_up_to_the_published_faces():
    told = [
        (protocol, split, words)
        for source in registry.sources().values()
        for protocol in source.protocols.values()
        for split, words in protocol.published_expressions.items()
    ]
    assert len(told) >= 12
    for protocol, split, words in told:
        assert sum(words.values()) == protocol.published[split], protocol.name
        assert set(words) == set(CLASS_SETS[protocol.settings["expression_classes"]]), protocol.name


def test_missing_and_empty_pictures_are_counted(toy):
    (toy / "a.png").unlink()
    (toy / "b.png").write_bytes(b"")
    found = inspect(toy, "toy")
    assert not found.ok
    assert "2 missing or empty" in found.text
    assert str(toy / "a.png") in found.text.replace("\n", "")


def test_missing_labels_are_reported_when_the_variant_is_known(toy):
    (toy / "list.txt").unlink()
    found = inspect(toy)
    assert not found.ok
    assert "missing: list.txt" in found.text
    assert "stopped:" in found.text
    (toy / "toy.md").unlink()  # now nobody knows what it is: plain bad input
    with pytest.raises(UserError, match=r"list\.txt: not found"):
        inspect(toy, "toy")


def test_labels_a_build_would_refuse_are_left_out_here_too(toy):
    (toy / "list.txt").write_text("a happiness\nb gladness\nv anger")
    found = inspect(toy)
    assert "'gladness' is not one of" in found.text
    assert rows(found.text)["train"] == ["1", "2", "-1"]


def test_nobody_or_several_recognise_it(toy, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no reader recognises it.*--source"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        inspect(tmp_path / "nowhere")
    twin = Source("twin", "", read_toy, detect=lambda root: Variant("twin kind"))
    both = {"toy": TOY, "twin": twin}
    monkeypatch.setattr("data_pipeline.inspect.sources", lambda: both)
    assert [source.name for source, _ in candidates(toy)] == ["toy", "twin"]
    with pytest.raises(UserError, match=r"toy release 2.*twin kind.*--source toy or --source twin"):
        inspect(toy)


def test_a_reader_that_stumbles_is_named_when_nobody_else_knows(toy, monkeypatch):
    def stumble(root):
        raise UserError(f"{root / 'x.csv'}: not text", "save it as UTF-8")

    broken = Source("broken", "", read_toy, detect=stumble)
    monkeypatch.setattr("data_pipeline.inspect.sources", lambda: {"toy": TOY, "broken": broken})
    assert inspect(toy).source.name == "toy"
    (toy / "toy.md").unlink()
    with pytest.raises(UserError, match=r"broken: .*x\.csv: not text -> save it as UTF-8"):
        inspect(toy)


def test_a_missing_option_is_told_with_what_was_seen(tmp_path):
    disfa.write(tmp_path)
    with pytest.raises(UserError, match=r"'frame_offset' is missing \(Frames: .*frame_offset -1"):
        inspect(tmp_path)


def test_only_some_of_many_pictures_are_looked_for(tmp_path):
    def sample(limit, count):
        pictures = Pictures(limit=limit)
        for number in range(count):
            pictures.add(str(tmp_path / str(number)))
        return pictures

    few, again = sample(10, 500), sample(10, 500)
    assert few.sample == again.sample
    assert len(set(few.sample)) == 10
    assert max(int(name.rsplit("/", 1)[1]) for name in few.sample) > 100
    assert len(sample(10, 10).sample) == 10
    few.look(lambda *_: None)
    assert len(few.missing) == 10
    assert few.listed == 500
    few.add(b"pixels")
    assert (few.listed, few.embedded) == (500, 1)


@pytest.fixture
def faces(tmp_path):
    root = tmp_path / "faces"
    for path in ("train/happy/1.png", "train/sad/2.png", "test/happy/3.png"):
        picture(root / path)
    (root / "train/sad/notes.txt").write_text("")
    with (tmp_path / "faces.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["file", "mood", "AU1", "yaw"],
                ["faces/train/happy/1.png", "happy", 1, -10],
                ["faces/gone.png", "", "", 20],
            ]
        )
    (tmp_path / "faces.zip").write_bytes(b"PK")
    (tmp_path / "cut" / "AUCoding").mkdir(parents=True)
    (tmp_path / "cut" / "AUCoding" / "AU_OCC").write_bytes(b"")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "UTKFace").write_bytes(b"an archive without its ending")
    return SimpleNamespace(folder=root, table=tmp_path / "faces.csv")


def test_generic_sources_on_the_command_line(faces, capsys):
    assert main(["data", "inspect", str(faces.folder), "--source", "folder"]) == 0
    said = capsys.readouterr().out
    assert rows(said)["train"] == ["2", "-", "-"]
    assert "happiness 2" in said
    assert "not an image file" in said
    columns = ["columns.image=file", "columns.expression=mood", "columns.action_units=[AU1]"]
    assert main(["data", "inspect", "table", str(faces.table), *columns, "columns.yaw=yaw"]) == 1
    said = capsys.readouterr().out
    assert "1 missing or empty" in said
    assert "-10 to 20, mean 5" in said
    assert rows(said)["expression"][:2] == ["1", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["FOLDER"], "data inspect folder "),
        (["FOLDER.csv"], "data inspect table "),
        (["FOLDER.zip"], "unpack it"),
        (["FOLDER/../packed", "--source", "utkface"], "a file where a folder belongs"),
        (["FOLDER/../cut"], "no reader recognises it; bp4d: "),
        (["FOLDER", "--source", "foldre"], "did you mean 'folder'"),
        (["FOLDER", "--source", "folder", "labl=gender"], "labl"),
        (["FOLDER", "--source", "synth", "--protocol", "no/such"], "no protocol 'no/such'"),
        (["FOLDER", "--source", "synth"], "parquet shards"),
        (["folder", "FOLDER", "--source", "table"], "SOURCE and ROOT"),
        (["FOLDER/train/happy"], "no reader recognises it"),
    ],
)
def test_bad_input_exits_with_two(faces, capsys, words, said):
    words = [word.replace("FOLDER", str(faces.folder)) for word in words]
    assert main(["data", "inspect", *words]) == 2
    assert said in capsys.readouterr().err


DETECTING = [module for module in fixtures() if get_source(module.NAME).detect]


@pytest.mark.parametrize("module", DETECTING, ids=lambda module: module.NAME)
def test_every_fixture_is_known_by_its_own_reader_alone(module, tmp_path):
    """Only RAF-DB's folder with both its parts is two datasets."""
    module.write(tmp_path)
    both = ["rafdb", "rafdb_compound"]
    expected = both if module.NAME == "rafdb_compound" else [module.NAME]
    assert [source.name for source, _ in candidates(tmp_path)] == expected


def test_no_reader_claims_or_stumbles_over_what_is_none_of_it(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text("file,mood\n1.png,happy\n")
    (tmp_path / "notes" / "more").mkdir(parents=True)
    picture(tmp_path / "1.png")
    for root in (tmp_path, table, tmp_path / "1.png", tmp_path / "notes"):
        assert candidates(root) == []


@pytest.mark.parametrize("module", list(fixtures()), ids=lambda module: module.NAME)
def test_every_fixture_is_inspected(module, tmp_path):
    """The report holds every face and every row left out of each case."""
    module.write(tmp_path)
    for case in module.CASES:
        reader = get_source(module.NAME)
        options = [f"{key}={json.dumps(value)}" for key, value in case.options.items()]
        root = root_of(module, tmp_path)
        found = inspect(root, reader.name, protocol=case.protocol, overrides=options)
        (reading,) = found.readings
        assert reading.error == ""
        assert reading.found == Counter(split for split, _ in case.records.values())
        assert reading.drops.counts == case.dropped
        assert reading.protocol.name in found.text
