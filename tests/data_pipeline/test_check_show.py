import io
import re

import numpy as np
import pytest
from PIL import Image

from data_pipeline.check import check, difference_hash, near_pairs
from data_pipeline.records import QA, FaceRecord, write_dataset
from data_pipeline.show import sample_records, show, show_html
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
    def make(*records):
        with write_dataset(tmp_path / "d") as writer:
            for record in records:
                writer.add(record)
        return tmp_path / "d"

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
    assert calls[-1] == (12, 12, "checking")


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


def test_difference_hash_is_the_sign_of_the_gradient():
    ramp = np.tile(np.arange(0, 255, 15, dtype=np.uint8), (16, 1))  # 17 wide: rising everywhere
    rising = difference_hash(Image.fromarray(ramp))
    assert np.bitwise_count(rising).sum() == 256
    assert np.bitwise_count(difference_hash(Image.fromarray(ramp[:, ::-1]))).sum() == 0


def test_difference_hash_survives_encoding_and_scaling_and_tells_pictures_apart():
    hashes = [difference_hash(drawing(i)) for i in range(40)]
    for i in range(40):
        with Image.open(io.BytesIO(encoded(drawing(i), quality=60))) as again:
            assert np.bitwise_count(hashes[i] ^ difference_hash(again)).sum() <= 12
        smaller = difference_hash(drawing(i).resize((70, 70)))
        assert np.bitwise_count(hashes[i] ^ smaller).sum() <= 12
    apart = [np.bitwise_count(hashes[i] ^ hashes[j]).sum() for i in range(40) for j in range(i)]
    assert min(apart) > 60


def test_near_pairs_equal_the_plain_comparison():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2**63, (300, 4), dtype=np.uint64)
    other = one[rng.permutation(300)[:90]].copy()
    other[::3, 0] ^= np.uint64(0b1011)
    expected = {
        (i, j, sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(one[i], other[j], strict=True)))
        for i in range(300)
        for j in range(90)
    }
    expected = {pair for pair in expected if pair[2] <= 12}
    assert len(expected) == 90
    assert set(near_pairs(one, other, 12, block=64)) == expected


def test_flat_pictures_are_nobodys_duplicate(dataset):
    grey = [encoded(Image.new("RGB", (64, 64), (shade,) * 3)) for shade in (40, 90)]
    records = (face(30, "train", image=grey[0]), face(31, "val", image=grey[1]))
    assert "near-duplicate" not in kinds(check(dataset(*records)))


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
