"""The report: self-contained, says what the results say, in words a reader can check."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import eval_doubles as doubles
import pytest
from rich.console import Console

from data_pipeline.records import read_manifest
from eval import cards, report, run
from eval.table import Faces


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    data = doubles.build(tmp_path_factory.mktemp("report") / "data")
    asking = run.asking_for(read_manifest(data), None)
    faces = Faces(data, "test")
    return run.measure(doubles.Noisy(), data, faces, asking, run.SCORERS[:1], clip=doubles.Clip())


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_report(run.results_of(measured, 0), measured, path, 0)
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_from_outside(page):
    outside = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#|\"?data:)([^\"')\s>]+)", page)
    assert not outside
    assert "<script" not in page
    assert "@import" not in page


def test_page_has_every_section(page, measured):
    tasks = {entry["task"] for entry in measured.results}
    for task in tasks:
        assert report.plain(task) in page
    assert page.count("<svg") == len(tasks)
    assert page.count('class="card"') == 24
    assert "double/all" in page
    assert "smiling" in page
    assert "not a fact about a person" in page


def test_tasks_are_named_in_plain_words():
    assert report.plain("zero_shot_attribute_yes_no") == "zero-shot attribute (yes/no)"
    assert report.plain("head_pose") == "head pose"


def test_nearly_zero_degrees_are_zero():
    row = SimpleNamespace(truth=-0.4, prediction=-0.2, task="head_pose")
    assert cards._number(row, "yaw").text == "yaw 0\u00b0 (true 0)"


def test_ids_of_figures_do_not_collide(page):
    defined = [set(re.findall(r'<clipPath id="([^"]+)"', svg)) for svg in page.split("<svg")[1:]]
    assert sum(map(len, defined)) == len(set().union(*defined))


def test_headline_table_shows_the_results(page, measured):
    chosen = report.headlines(measured.results)
    tasks = [entry["task"] for entry in chosen]
    assert [task for task in tasks if task != "zero_shot_attribute_yes_no"] == [
        "expression",
        "action_unit",
        "attribute",
        "zero_shot_attribute",
        "age",
        "head_pose",
    ]
    assert {entry["name"] for entry in chosen} == {"all"}
    for entry in chosen:
        assert report.shown(entry["value"], entry["metric"]) in page
        assert report.interval(entry) in page


def test_same_input_gives_the_same_page(page, measured, tmp_path):
    path = tmp_path / "again.html"
    report.write_report(run.results_of(measured, 0), measured, path, 0)
    assert path.read_text(encoding="utf-8") == page


def test_labels_with_markup_are_escaped(measured, tmp_path):
    about = {**measured.about, "model": "<b>bold</b>"}
    changed = run.Measured(measured.predictions, measured.results, measured.faces, about)
    report.write_report(run.results_of(changed, 0), changed, tmp_path / "r.html", 0)
    assert "<b>bold</b>" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_console_table_fits_eighty_columns(measured):
    out = io.StringIO()
    report.print_results(run.results_of(measured, 0), Console(file=out, width=80))
    text = out.getvalue()
    assert "\u2026" not in text
    for entry in report.headlines(measured.results):
        assert report.shown(entry["value"], entry["metric"]) in text


def test_verdict_knows_which_way_is_better():
    def entry(metric, probe):
        return {"metric": metric, "ci95": [0.4, 0.6], "baselines": {"linear_probe": probe}}

    assert report.verdict(entry("uar", 0.3)) == "better"
    assert report.verdict(entry("uar", 0.7)) == "worse"
    assert report.verdict(entry("uar", 0.5)) == "level"
    assert report.verdict(entry("mae", 0.7)) == "better"
    assert report.verdict(entry("mae", 0.3)) == "worse"
    assert report.verdict({"metric": "uar", "ci95": [0.1, 0.2], "baselines": {}}) == "level"
