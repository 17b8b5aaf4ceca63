import io
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.check import check
from data_pipeline.records import QA, FaceRecord, write_dataset
from data_pipeline.show import sample_records, show, show_html
from face_mllm.cli import main
from face_mllm.errors import UserError


def drawing(number):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def encoded(image, quality=92):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def face(number, split="train", **changes):
    settings = {
        "id": f"s_{number}",
        "source": "s",
        "split": split,
        "subject": f"p{number}",
        "image": encoded(drawing(number)),
        "labels": {"gender": "male" if number % 2 else "female"},
        "qa": (QA("gender", "all", "Male or female?", "male", ("male", "female")),),
    }
    return FaceRecord(**{**settings, **changes})


@pytest.fixture
def dataset(tmp_path):
    def make(*records, name="d", protocols=None):
        with write_dataset(tmp_path / name) as writer:
            for record in records:
                writer.add(record)
        entries = [
            {"protocols": {source: {"name": protocol}}}
            for source, protocol in (protocols or {}).items()
        ]
        if entries:
            (tmp_path / name / "manifest.json").write_text(json.dumps({"sources": entries}))
        return tmp_path / name

    return make


GOOD = [face(i, ("train", "val", "test")[i % 3]) for i in range(12)]


def kinds(report):
    return {finding.kind for finding in report.findings}


def test_a_sound_dataset_has_nothing_to_report(dataset):
    calls = []
    report = check(dataset(*GOOD), progress=lambda *args: calls.append(args))
    assert report.ok
    assert report.findings == []
    assert report.faces == {"train": 4, "val": 4, "test": 4}
    assert "nothing wrong" in report.text
    assert (12, 12, "checking") in calls
    assert calls[-1] == (3, 3, "comparing")


BAD = {
    "unreadable image": face(20, image=b"\xff\xd8broken"),
    "tiny image": face(20, image=encoded(drawing(20).resize((9, 9)))),
    "subject leak": face(20, "train", subject="p1"),
    "id twice": face(20, id="s_1"),
    "duplicate across splits": face(20, "train", image=GOOD[1].image, labels=GOOD[1].labels),
    "near-duplicate": face(20, "train", image=encoded(drawing(1), quality=60)),
    "bad label": face(20, labels={"expression": "happy"}),
    "bad answer": face(20, qa=(QA("gender", "all", "?", "man", ("male", "female")),)),
    "label conflict": face(20, labels={"gender": "male", "attributes": {"male": False}}),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_fault_is_found_and_named(dataset, kind):
    report = check(dataset(*GOOD, BAD[kind]))
    assert not report.ok
    assert kind in {finding.kind for finding in report.problems}
    assert report.problems[0].where
    assert kind in report.text


def test_an_age_outside_its_band_is_a_conflict(dataset):
    report = check(dataset(*GOOD, face(20, labels={"age": 25, "age_band": "30-39"})))
    assert [finding.detail for finding in report.problems] == ["age 25, age_band 30-39"]


def test_one_picture_with_two_labels_is_a_conflict(dataset):
    twin = face(21, "val", image=GOOD[1].image, labels={"gender": "female"})
    assert "label conflict" in kinds(check(dataset(*GOOD, twin)))


def test_a_duplicate_inside_a_split_is_only_a_note(dataset):
    twin = face(20, "val", image=GOOD[1].image, labels=GOOD[1].labels)
    report = check(dataset(*GOOD, twin))
    assert report.ok
    assert kinds(report) == {"duplicate"}


def test_held_out_words_are_found_afterwards(dataset):
    root = dataset(*GOOD, face(20, qa=(QA("vqa", "x", "Is she smiling?", "yes"),)))
    assert check(root).ok
    (root / "manifest.json").write_text('{"holdout_attributes": ["smiling"]}')
    assert "held-out leak" in kinds(check(root))


def test_held_out_words_among_choices_are_found(dataset):
    root = dataset(*GOOD, face(20, qa=(QA("vqa", "x", "Which?", "no", ("a grin", "no")),)))
    (root / "manifest.json").write_text('{"holdout_attributes": ["smiling"]}')
    (found,) = check(root).problems
    assert (found.kind, found.where) == ("held-out leak", "s_20")
    assert "'a grin' mentions 'grin'" in found.detail


def test_lopsided_answers_and_missing_classes_are_notes(dataset):
    qa = (QA("attribute", "beard", "Is there a beard?", "no", ("yes", "no")),)
    report = check(dataset(*(face(i, qa=qa) for i in range(4)), face(9, "val")))
    assert report.ok
    assert kinds(report) == {"lopsided answers", "missing class"}


def test_counts_go_on_after_the_list_is_full(dataset):
    report = check(dataset(*(face(i, labels={"age": -1}) for i in range(30))))
    assert report.counts["bad label"] == 30
    assert len(report.problems) == 20


def test_check_of_something_else(tmp_path):
    with pytest.raises(UserError, match="not a built dataset"):
        check(tmp_path)


def test_flat_pictures_are_nobodys_duplicate(dataset):
    grey = [encoded(Image.new("RGB", (64, 64), (shade,) * 3)) for shade in (40, 90)]
    records = (face(30, "train", image=grey[0]), face(31, "val", image=grey[1]))
    assert "near-duplicate" not in kinds(check(dataset(*records)))


def other(number, split="train", source="t", **changes):
    """A face of a second source."""
    settings = {"id": f"{source}_{number}", "source": source, "subject": f"q{number}"}
    return face(number + 500, split, **{**settings, **changes})


AGAIN = encoded(drawing(1), quality=60)
MIRRORED = encoded(ImageOps.mirror(drawing(1)))


@pytest.mark.parametrize(
    ("twin", "kind", "problem"),
    [
        (other(1, "test", image=AGAIN), "near-duplicate", True),
        (other(1, "val", image=AGAIN), "near-duplicate across sources", False),
        (other(1, "test", image=MIRRORED), "mirror image", True),
        (other(1, "val", image=MIRRORED), "mirror image across sources", False),
        (face(21, "test", image=MIRRORED), "mirror image", True),
        (other(1, "val", image=GOOD[1].image), "duplicate across sources", False),
        (other(1, "train", image=GOOD[1].image), "duplicate across splits", True),
        (face(21, "val", image=AGAIN), None, False),  # frames of a video look alike
        (face(21, "val", image=MIRRORED), None, False),
    ],
)
def test_the_same_picture_across_splits_is_a_problem_and_across_sources_a_note(
    dataset, twin, kind, problem
):
    report = check(dataset(*GOOD, twin))  # GOOD[1] is in val
    assert kinds(report) == ({kind} if kind else set())
    assert report.ok is not problem


def test_two_sources_may_label_a_picture_differently(dataset):
    labels = {"gender": "female", "expression": "fear"}
    twin = other(1, "val", image=GOOD[1].image, labels=labels)
    report = check(dataset(*GOOD, twin))
    assert report.ok
    (found,) = [f for f in report.findings if f.kind == "label conflict across sources"]
    assert found.detail == "one picture, gender male and female"


def placed(source, splits, start=0):
    """Faces of a source, one in each split."""
    return [other(start + n, split, source) for n, split in enumerate(splits)]


@pytest.mark.parametrize(
    ("one", "its_protocol", "two", "verdict"),
    [
        (("mmafedb", ["train"]), "mmafedb/official", ("fer2013", ["test"]), "problem"),
        (("mmafedb", ["train"]), "mmafedb/official", ("ferplus", ["train", "test"]), "problem"),
        (("mmafedb", ["train"]), "mmafedb/official", ("fer2013", ["train"]), "note"),
        (("disfa", ["train"]), "disfa/3fold-ge2-fold1", ("disfaplus", ["test"]), "problem"),
        (("disfa", ["train"]), "disfa/without-disfaplus", ("disfaplus", ["test"]), None),
        (("disfa", ["train"]), None, ("disfaplus", ["test"]), "problem"),
        (("mine", ["train"]), "celeba/official", ("celeba_dialog", ["val"]), "problem"),
        (("mine", ["train"]), "table/all", ("celeba_dialog", ["val"]), None),
        (("affectnet2017", ["train"]), None, ("celeba", ["val"]), None),
        (("sfew", ["test"]), "sfew/val-as-test", ("afew", ["train"]), "problem"),
        (("laion_face+openai:m", ["train"]), None, ("facecaption", ["test"]), "problem"),
    ],
)
def test_sources_known_to_overlap_are_named(dataset, one, its_protocol, two, verdict):
    faces = [*placed(*one), *placed(*two, start=50)]
    report = check(dataset(*faces, protocols={one[0]: its_protocol} if its_protocol else None))
    found = [finding for finding in report.findings if finding.kind == "known overlap"]
    assert len(found) == (verdict is not None)
    assert report.ok is (verdict != "problem")
    for finding in found:
        assert f"{one[0]} ({', '.join(one[1])})" in finding.where
        assert f"{two[0]} ({', '.join(two[1])})" in finding.where


def test_an_overlap_that_was_seen_to_keep_to_its_splits_is_a_note(dataset):
    ours = placed("fer2013", ["train", "train", "test"])
    theirs = [
        other(50 + n, record.split, "ferplus", image=record.image, labels=record.labels)
        for n, record in enumerate(ours)
    ]
    report = check(dataset(*ours, *theirs))
    assert report.ok
    (found,) = [finding for finding in report.findings if finding.kind == "known overlap"]
    assert "3 seen, none of them across splits" in found.detail


def test_a_train_set_against_a_test_set(dataset):
    mine = dataset(*GOOD[::3], name="mine")  # train
    theirs = [
        face(1, "test", id="s_0"),  # an id may stand in both
        face(40, "test", subject="p3"),
        face(41, "test", image=encoded(drawing(6), quality=60)),
    ]
    theirs.append(other(42, "test", image=GOOD[9].image, labels=GOOD[9].labels))
    test = dataset(*theirs, name="theirs")
    assert check(mine).ok
    assert check(test).ok
    report = check(mine, test)
    assert report.faces == {"train of mine": 4, "test of theirs": 4}
    found = {(finding.kind, finding.where) for finding in report.problems}
    assert found == {
        ("subject leak", "s_40"),
        ("near-duplicate", "s_6 (train of mine), s_41 (test of theirs)"),
        ("duplicate across splits", "s_9 (train of mine), t_42 (test of theirs)"),
    }


def test_sources_known_to_overlap_in_two_datasets(dataset):
    mine = dataset(*placed("mmafedb", ["train"]), name="mine")
    test = dataset(*placed("ferplus", ["test"], start=50), name="theirs")
    (found,) = check(mine, test).problems
    assert found.where == "mmafedb (train of mine), ferplus (test of theirs)"


def test_the_command_takes_several_folders(dataset, capsys):
    mine, test = dataset(*GOOD[::3], name="mine"), dataset(face(0, "test"), name="theirs")
    assert main(["data", "check", str(mine)]) == 0
    assert main(["data", "check", str(mine), str(test)]) == 1
    said = capsys.readouterr().out
    assert "test of theirs 1; something is wrong" in said
    assert said.count("problem ") == 2


# --- show


def test_the_sheet_is_one_file_with_faces_questions_and_the_loss_marked(dataset, tmp_path):
    mean = face(40, labels={"age": 31.0}, caption='<b>"sly"</b>', licence="CC0")
    out = show_html(dataset(*GOOD, mean), tmp_path / "pages" / "sheet.html", n=20)
    html = out.read_text()
    assert html.count("data:image/jpeg;base64,") == 13
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert '<td class="loss">male</td>' in html
    assert "Male or female?" in html
    assert "&lt;b&gt;" in html
    assert "<b>&#34;sly" not in html
    assert [path.name for path in out.parent.iterdir()] == ["sheet.html"]


def test_the_terminal_view_takes_any_text(dataset):
    odd = face(40, qa=(QA("vqa", "x", "[bold]?[/]", "[red]yes[/nothing]"),))
    text = show(dataset(odd), count=5)
    assert "[red]yes[/nothing]" in text
    assert "s_40" in text


def test_show_samples_by_seed(dataset):
    root = dataset(*GOOD)
    one = [record.id for record in sample_records(root, 4, seed=1)]
    assert one == [record.id for record in sample_records(root, 4, seed=1)]
    assert one != [record.id for record in sample_records(root, 4, seed=2)]
    assert len(sample_records(root, 99)) == 12


def test_show_of_something_else(tmp_path):
    with pytest.raises(UserError, match="not a built dataset"):
        show(tmp_path)


def test_show_names_the_broken_picture_and_writes_nothing(dataset, tmp_path):
    with pytest.raises(UserError, match="s_7: not a readable image"):
        show_html(dataset(face(7, image=b"broken")), tmp_path / "sheet.html")
    assert not (tmp_path / "sheet.html").exists()
