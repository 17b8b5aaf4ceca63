"""Tables with votes, boxes and compounds, their delimiters; folders of labels of every kind."""

import csv

import pytest
from reading import read, records
from source_fixtures import picture

from face_mllm.errors import UserError


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(path, columns, **options):
    return read("table", path, columns={"image": "image", **columns}, **options)


VOTES = {"image": "a.jpg", "sad": "6", "Fearful": "2", "neutral": "0", "none": "2"}
VOTED = {"expression_votes": {"sadness": "sad", "fear": "Fearful", "neutral": "neutral"}}


def test_votes_become_shares_and_their_leader_the_expression(tmp_path):
    rows = [
        VOTES,
        VOTES | {"image": "b.jpg", "sad": "2"},  # a tie has no leader
        VOTES | {"image": "c.jpg", "sad": "0", "Fearful": "0"},  # nobody saw any of them
        VOTES | {"image": "d.jpg", "neutral": ""},  # not known how many
    ]
    path = write_csv(tmp_path / "faces.csv", rows)
    assert [record.labels for record in table(path, VOTED)] == [
        {"expression": "sadness", "expression_votes": {"sadness": 0.75, "fear": 0.25}},
        {"expression_votes": {"sadness": 0.5, "fear": 0.5}},
        {},
        {},
    ]
    expert = {"expression_votes": ["sad", "Fearful"], "expression": "none"}
    listed = table(path, expert, values={"expression": {2: "fear"}})
    assert listed[0].labels["expression"] == "fear"  # the expert's word stands beside the votes
    with pytest.raises(ValueError, match="joyfull"):
        table(path, {"expression_votes": ["joyfull"]})
    path = write_csv(tmp_path / "bad.csv", [VOTES | {"sad": "-1"}])
    with pytest.raises(UserError, match=r"bad\.csv: row 1, column 'sad': '-1' .*0 votes"):
        table(path, VOTED)


def test_boxes_and_compound_expressions(tmp_path):
    row = {"image": "a.jpg", "l": "1", "t": "2", "r": "10", "b": "20.5", "mixed": "Sadly_Angry"}
    gone = [row | {"image": "b.jpg", "l": ""}, row | {"image": "c.jpg", "r": "0.5"}]
    path = write_csv(tmp_path / "faces.csv", [row, *gone])
    columns = {"box": ["l", "t", "r", "b"], "compound_expression": "mixed"}
    (record, *dropped) = table(path, columns)
    assert record.box == (1.0, 2.0, 10.0, 20.5)
    assert record.labels == {"compound_expression": "sadly angry"}
    assert [(row.reason, row.where) for row in dropped] == [
        ("no face box", "row 2"),
        ("no face box", "row 3"),
    ]
    assert table(path, columns, box="xywh")[0].box == (1.0, 2.0, 11.0, 22.5)


def test_semicolons_and_names_that_come_twice(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text("image;emo\na.jpg;sad\n")
    (record,) = table(path, {"expression": "emo"})
    assert record.labels == {"expression": "sadness"}
    path.write_text("image,emo,emo\na.jpg,sad,happy\n")
    with pytest.raises(UserError, match="two columns 'emo'"):
        table(path, {"expression": "emo"})


def test_pictures_of_one_name_in_two_folders_are_two_faces(tmp_path):
    rows = [{"image": place} for place in ("train\\1.jpg", "val/1.jpg", "/far/away/1.jpg")]
    path = write_csv(tmp_path / "faces.csv", rows)
    assert [row.id for row in table(path, {})] == ["faces_train_1", "faces_val_1", "faces_1"]


@pytest.mark.parametrize(
    ("label", "folder", "labels"),
    [
        ("age", "31", {"age": 31.0}),
        ("age_band", "more than 70", {"age_band": "70+"}),
        ("compound_expression", "sadly angry", {"compound_expression": "sadly angry"}),
        ("gender", "Woman", {"gender": "female"}),
        ("eyeglasses", "yes", {"attributes": {"eyeglasses": True}}),
        ("No_Beard", "True", {"attributes": {"beard": False}}),
    ],
)
def test_folders_may_be_any_label(tmp_path, label, folder, labels):
    picture(tmp_path / folder / "a.png")
    assert [row.labels for row in read("folder", tmp_path, label=label)] == [labels]


def test_folders_of_an_attribute_in_words_of_their_own(tmp_path):
    for name in ("masked", "bare", "odd"):
        picture(tmp_path / name / "a.png")
    values = {"masked": True, "bare": False, "odd": None}
    rows = read("folder", tmp_path, label="wearing_hat", values=values)
    worn = [row.labels["attributes"]["wearing_hat"] for row in records(rows)]
    assert worn == [False, True]
    with pytest.raises(UserError, match=r"odd: 'odd' is no wearing_hat -> map it: `values: \{odd"):
        read("folder", tmp_path, label="wearing_hat", values={"masked": True, "bare": False})
    with pytest.raises(ValueError, match="did you mean 'wearing_hat'"):
        read("folder", tmp_path, label="wearing_hats")
