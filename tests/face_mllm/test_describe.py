"""Rows of ``describe``: every leaf a column, JSON that reads back."""

import csv
import io
import json

import numpy as np

from face_mllm.chat import _enter
from face_mllm.describe import to_csv, to_json_lines

ROWS = [
    {"image": "a.jpg", "box": [0, 0, 8, 8], "expression": {"happiness": 0.75}, "age": 31.5},
    {"image": "b, c.jpg", "box": [0, 0, 4, 4], "head_pose": {"yaw": -3.0}},
]


def test_something_or_no_is_one_probability():
    row: dict = {}
    for name, choices in (("AU12", ("corners up", "no")), ("AU4", ("yes", "no"))):
        entry = {"task": "action_unit", "name": name, "choices": choices, "values": None}
        _enter(row, entry, np.array([0.75, 0.25]))
    entry = {"task": "gender", "name": "all", "choices": ("male", "female"), "values": None}
    _enter(row, entry, np.array([0.75, 0.25]))
    assert row == {
        "action_units": {"AU12": 0.75, "AU4": 0.75},
        "gender": {"male": 0.75, "female": 0.25},
    }


def test_csv_has_a_column_per_leaf():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows[0]["expression.happiness"] == "0.75"
    assert rows[0]["box"] == "0 0 8 8"
    assert rows[1]["image"] == "b, c.jpg"
    assert (rows[1]["age"], rows[1]["head_pose.yaw"]) == ("", "-3.0")


def test_json_is_one_object_a_line():
    assert [json.loads(line) for line in to_json_lines(ROWS).splitlines()] == ROWS
