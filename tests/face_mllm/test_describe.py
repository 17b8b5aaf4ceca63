"""Rows of ``describe``: every leaf a column, JSON that reads back."""

import csv
import io
import json

from face_mllm.describe import to_csv, to_json_lines

ROWS = [
    {"image": "a.jpg", "box": [0, 0, 8, 8], "expression": {"happiness": 0.75}, "age": 31.5},
    {"image": "b, c.jpg", "box": [0, 0, 4, 4], "head_pose": {"yaw": -3.0}},
]


def test_csv_has_a_column_per_leaf():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows[0]["expression.happiness"] == "0.75"
    assert rows[0]["box"] == "0 0 8 8"
    assert rows[1]["image"] == "b, c.jpg"
    assert (rows[1]["age"], rows[1]["head_pose.yaw"]) == ("", "-3.0")


def test_json_is_one_object_a_line():
    assert [json.loads(line) for line in to_json_lines(ROWS).splitlines()] == ROWS
