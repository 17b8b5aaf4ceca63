import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.records import FaceRecord, write_dataset
from data_pipeline.sources import Dropped, describe_sources, fingerprint, get_source, sources
from data_pipeline.sources.base import canonical_split, hash_split
from face_mllm.errors import UserError


def jpeg(shade=90, side=32):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_csv(path, rows, encoding="utf-8", newline="\n"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, rows[0], lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(name, root, **options):
    source = get_source(name)
    chosen = source.options(**options)
    return list(source.read_rows(root, chosen, source.protocol(None, chosen)))


def table(root, columns, **options):
    return read("table", root, columns={"image": "image", **columns}, **options)


def test_registry_finds_every_file_and_names_the_nearest():
    assert {"folder", "records", "synth", "table"} <= set(sources())
    for name in sources():
        assert name in describe_sources()
    with pytest.raises(UserError, match="did you mean 'synth'"):
        get_source("sinth")


def test_protocols_are_checked_where_a_source_documents_them():
    source = get_source("synth")
    assert source.protocol(None, source.options()).name == "synth/identity-split"
    with pytest.raises(UserError, match="no protocol 'own'"):
        source.protocol("own", source.options())
    own = get_source("table")
    options = own.options(columns={"image": "i"})
    assert own.protocol(None, options).name == "table/hash-80-10-10"
    assert own.protocol("mine/v1", options).name == "mine/v1"


# --- splits


def test_hash_split_keeps_a_subject_together_and_hits_the_shares():
    splits = [hash_split(f"s{i}", "hash-70-10-20") for i in range(20_000)]
    shares = [splits.count(name) / 20_000 for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.012)
    assert hash_split("s1") == hash_split("s1")


def test_hash_split_is_frozen():
    # a change here would move people between the splits of everybody's datasets
    assert [hash_split(f"person_{i}") for i in range(12)] == FROZEN


FROZEN = [
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "train",
    "test",
    "train",
    "train",
]


@pytest.mark.parametrize("rule", ["hash-80-10", "hash-80-10-20", "random", "hash-a-b-c"])
def test_bad_split_rules_are_refused(rule):
    with pytest.raises(ValueError, match="hash-TRAIN-VAL-TEST"):
        hash_split("s", rule)


def test_split_words():
    words = {
        "Training": "train",
        "validation": "val",
        "dev": "val",
        " TEST ": "test",
        "extra": None,
    }
    assert {word: canonical_split(word) for word in words} == words


# --- table


ROW = {
    "image": "a.jpg",
    "who": "p1",
    "part": "train",
    "emo": "Happy",
    "sex": "F",
    "years": "31",
    "band": "more than 70",
    "No_Beard": "1",
    "Eyeglasses": "false",
    "au12": "3.5",
    "y": "-10.5",
    "p": "",
}
COLUMNS = {
    "subject": "who",
    "split": "part",
    "expression": "emo",
    "gender": "sex",
    "age": "years",
    "age_band": "band",
    "attributes": ["No_Beard", "Eyeglasses"],
    "action_units": ["au12"],
    "yaw": "y",
    "pitch": "p",
}


@pytest.mark.parametrize(("encoding", "newline"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_csv_row_becomes_canonical_labels(tmp_path, encoding, newline):
    path = write_csv(tmp_path / "faces.csv", [ROW], encoding, newline)
    (record,) = table(path, COLUMNS, licence="mine")
    assert record.id == "faces_a"
    assert (record.source, record.split, record.subject) == ("faces", "train", "faces_p1")
    assert record.image == str(tmp_path / "a.jpg")
    assert record.licence == "mine"
    assert record.labels == {
        "expression": "happiness",
        "gender": "female",
        "age": 31.0,
        "age_band": "70+",
        "attributes": {"beard": False, "eyeglasses": False},
        "action_units": {"AU12": 3.5},
        "head_pose": {"yaw": -10.5},
    }


def test_parquet_reads_image_structs_bytes_and_only_mapped_columns(tmp_path):
    rows = {
        "id": ["t_1", "2"],
        "image": [{"bytes": jpeg(), "path": None}, {"bytes": None, "path": "sub/b.png"}],
        "label": [None, "sad"],
        "unused": [object.__name__] * 2,
    }
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    first, second = table(tmp_path / "t.parquet", {"id": "id", "expression": "label"})
    assert (first.id, second.id) == ("t_1", "t_2")
    assert first.image == rows["image"][0]["bytes"]
    assert second.image == str(tmp_path / "sub" / "b.png")
    assert (first.labels, second.labels) == ({}, {"expression": "sadness"})
    assert first.split == hash_split("t_1")


def test_empty_cells_and_mapped_null_are_unknown(tmp_path):
    rows = [{**ROW, "emo": "", "sex": "?", "Eyeglasses": "0", "No_Beard": "-1", "years": "nan"}]
    values = {"gender": {"?": None}, "attributes": {-1: False, 0: None}}
    (record,) = table(write_csv(tmp_path / "f.csv", rows), COLUMNS, values=values)
    assert record.labels["attributes"] == {"beard": True}
    assert not {"expression", "gender", "age"} & set(record.labels)


def test_codes_are_mapped_by_the_recipe(tmp_path):
    rows = [{"image": "a.jpg", "emotion": "3", "Usage": "PublicTest"}]
    values = {"expression": {3: "happiness"}, "split": {"PublicTest": "val"}}
    path = write_csv(tmp_path / "fer.csv", rows)
    (record,) = table(path, {"expression": "emotion", "split": "Usage"}, values=values)
    assert (record.labels, record.split) == ({"expression": "happiness"}, "val")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"emo": "hapy"}, "row 1, column 'emo': 'hapy' is no expression"),
        ({"sex": "x"}, "column 'sex': 'x' is no gender"),
        ({"Eyeglasses": "-1"}, "column 'Eyeglasses': '-1' is no attributes"),
        ({"years": "young"}, "'young' is no age"),
        ({"band": "old"}, "'old' is no age_band"),
        ({"part": "fold1"}, "'fold1' is no split"),
        ({"y": "left"}, "'left' is no yaw"),
    ],
)
def test_an_unmapped_value_names_file_row_and_column(tmp_path, changes, said):
    path = write_csv(tmp_path / "f.csv", [{**ROW, **changes}])
    with pytest.raises(UserError, match=f"f.csv: .*{said}.*values"):
        table(path, COLUMNS)


def test_a_wrong_column_names_the_nearest(tmp_path):
    path = write_csv(tmp_path / "f.csv", [ROW])
    with pytest.raises(UserError, match=r"f.csv: no column 'emotion'.*columns are image"):
        table(path, {"expression": "emotion"})
    with pytest.raises(UserError, match="did you mean 'Eyeglasses'"):
        table(path, {"attributes": ["eyeglases"]})


def test_ages_from_years_of_birth(tmp_path):
    rows = [
        {"image": "a", "born": "1970", "taken": "2001"},
        {"image": "b", "born": "", "taken": "1999"},
    ]
    path = write_csv(tmp_path / "f.csv", rows)
    known = table(path, {"birth_year": "born", "photo_year": "taken"})
    assert [record.labels for record in known] == [{"age": 31.0}, {}]
    assumed = table(path, {"birth_year": "born"}, reference_year=2010)
    assert [record.labels for record in assumed] == [{"age": 40.0}, {}]
    assert [record.labels for record in table(path, {"birth_year": "born"})] == [{}, {}]


def test_rows_without_a_picture_or_split_are_dropped_with_a_reason(tmp_path):
    rows = [{**ROW, "image": ""}, {**ROW, "part": ""}, ROW]
    found = table(write_csv(tmp_path / "f.csv", rows), COLUMNS)
    assert found[0] == Dropped("no image in the row", "row 1")
    assert found[1].where == "row 2"
    assert isinstance(found[2], FaceRecord)


@pytest.mark.parametrize("content", ["image,b\na.jpg\n", "image,b\na.jpg,1,2\n"])
def test_a_ragged_csv_row_is_named(tmp_path, content):
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises(UserError, match="row 1 has not 2 cells"):
        table(tmp_path / "f.csv", {})


def test_what_is_no_table_is_said(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="not readable as parquet"):
        table(tmp_path / "x.parquet", {})
    with pytest.raises(UserError, match="not a table"):
        table(tmp_path, {})
    (tmp_path / "x.csv").write_bytes(b"image\n\xff\xfe\xff\n")
    with pytest.raises(UserError, match="UTF-8"):
        table(tmp_path / "x.csv", {})


def test_a_different_image_folder(tmp_path):
    path = write_csv(tmp_path / "f.csv", [{"image": "sub\\a.jpg"}])
    (record,) = table(path, {}, images="pictures")
    assert record.image == str(tmp_path / "pictures" / "sub" / "a.jpg")


# --- folder


def plant(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg())
    return root


def test_folder_per_class_with_splits(tmp_path):
    root = plant(tmp_path / "fer", "train/Happy/1.jpg", "validation/Sad/1.jpg", "test/Angry/2.PNG")
    plant(root, "train/Happy/Thumbs.db", "train/Happy/notes.txt")
    found = read("folder", root)
    dropped = [row for row in found if isinstance(row, Dropped)]
    records = [row for row in found if isinstance(row, FaceRecord)]
    assert dropped == [Dropped("not an image file", "train/Happy/notes.txt")]
    assert {(r.id, r.split, r.labels["expression"]) for r in records} == {
        ("fer_train_Happy_1", "train", "happiness"),
        ("fer_validation_Sad_1", "val", "sadness"),
        ("fer_test_Angry_2", "test", "anger"),
    }


def test_folder_per_class_without_splits_hashes(tmp_path):
    root = plant(tmp_path / "me", "1/a.jpg", "2/b.jpg", "3/c.jpg")
    values = {"1": "surprise", "2": "fear", "3": None}
    found = read("folder", root, values=values, split="hash-0-0-100")
    assert [r.split for r in found[:2]] == ["test", "test"]
    assert found[2].reason == "class '3' left out by values"


def test_folder_of_genders_and_unknown_classes(tmp_path):
    root = plant(tmp_path / "g", "Male/a.jpg")
    assert read("folder", root, label="gender")[0].labels == {"gender": "male"}
    with pytest.raises(UserError, match="Male: 'Male' is no expression"):
        read("folder", root)
    plant(root, "Femal/a.jpg")
    with pytest.raises(UserError, match="did you mean 'female'"):
        read("folder", root, label="gender")


def test_folder_without_classes(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        read("folder", tmp_path)
    plant(tmp_path, "train/happy/a.jpg", "happy/b.jpg")
    with pytest.raises(UserError, match="beside class folders"):
        read("folder", tmp_path)


# --- records


def test_records_come_back_without_questions(tmp_path):
    record = FaceRecord("s_1", "s", "val", "p", jpeg(), {"age": 3.0}, licence="CC0")
    with write_dataset(tmp_path / "d") as writer:
        writer.add(record)
    for name in ("records", "synth"):
        assert read(name, tmp_path / "d") == [record]
    with pytest.raises(UserError, match="data synth"):
        read("synth", tmp_path)


# --- fingerprints


def test_fingerprint_sees_labels_names_and_picture_sizes(tmp_path):
    root = plant(tmp_path / "r", "a/1.jpg", "b/2.jpg")
    seen = {fingerprint(root)}
    (root / "list.txt").write_text("1 5")
    seen.add(fingerprint(root))
    (root / "list.txt").write_text("1 6")
    seen.add(fingerprint(root))
    (root / "a" / "1.jpg").rename(root / "a" / "3.jpg")
    seen.add(fingerprint(root))
    assert len(seen) == 4
    assert fingerprint(root) in seen
    assert fingerprint(root / "list.txt") == fingerprint(root / "list.txt")


def test_fingerprint_reads_no_small_file_of_very_many(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.base.MANY_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}_exp.npy").write_bytes(b"4")
    (tmp_path / "all.txt").write_text("1")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    whole = fingerprint(tmp_path)
    (tmp_path / "2_exp.npy").write_bytes(b"5")
    assert fingerprint(tmp_path) == whole  # named in the docs: by path and size
    (tmp_path / "2_exp.npy").write_bytes(b"55")
    longer = fingerprint(tmp_path)
    (tmp_path / "all.txt").write_text("2")
    assert len({whole, longer, fingerprint(tmp_path)}) == 3  # a list still counts by content
    (tmp_path / "3_exp.npy").unlink()
    few = fingerprint(tmp_path)
    (tmp_path / "2_exp.npy").write_bytes(b"66")
    assert fingerprint(tmp_path) != few
    monkeypatch.setattr("data_pipeline.sources.base.MANY_FILES", 2)
    monkeypatch.setattr("data_pipeline.sources.base.SMALL_FILE", 1)
    large = fingerprint(tmp_path)
    (tmp_path / "2_exp.npy").write_bytes(b"77")
    assert fingerprint(tmp_path) != large
