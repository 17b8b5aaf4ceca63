"""``data annotate`` against a server that times out, limits, breaks and refuses."""

import io
import json
import logging
import time
from email.utils import formatdate

import pytest
from annotate_stub import (
    ASKED,
    KEY,
    KEY_ENV,
    Step,
    good,
    lines,
    run,
    said,
    serving,
    spec,
    states,
    write_faces,
)
from PIL import Image

from data_pipeline.annotate.journal import journal_folder
from data_pipeline.records import iter_records
from face_mllm.cli import main
from face_mllm.errors import UserError

pytest.importorskip("httpx2", reason="pip install 'face-mllm[annotate]'")


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / "faces")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def known(number):
    return {name: state == "yes" for name, state in states(number).items() if state != "unknown"}


def first(step):
    """A plan: the first time every face is asked, ``step``; then all is well."""
    return lambda number, before: good(number) if before else step


def test_labels_captions_and_who_gave_them(faces, out):
    with serving() as stub:
        manifest = run(faces, out, spec(stub))
    found = {record.id: record for record in iter_records(out)}
    assert list(found) == [f"web_{n}" for n in range(6)]
    for number in range(6):
        record = found[f"web_{number}"]
        assert record.labels == {"attributes": known(number)}
        assert record.caption == f"Face {number}."
        assert record.source == "web+openai:stub"
        assert record.qa == ()
    assert manifest["splits"]["train"]["faces"] == 5
    about = manifest["annotation"]
    assert about["labels_by"] == "machine"
    assert about["annotators"][0]["model"] == "stub"
    assert about["endpoints"] == {"openai:stub": stub.url}
    assert about["usage"]["openai:stub"]["tokens_in"] == 600
    assert set(stub.asked.values()) == {1}
    assert lines(out / "refused.jsonl") == lines(out / "disagreements.jsonl") == []
    assert lines(out / "annotations.jsonl")[1]["answers"]["openai:stub"]["smiling"] == "unknown"
    assert not journal_folder(out).exists()


def test_what_is_sent(faces, out, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    with serving() as stub:
        run(faces, out, spec(stub, key_env=KEY_ENV, max_side=32))
    body, headers = stub.bodies[0], stub.headers[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "stub"
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["caption", *ASKED]
    assert schema["schema"]["properties"]["smiling"]["enum"] == ["yes", "no", "unknown"]
    assert "eyeglasses" in body["messages"][0]["content"][0]["text"]


@pytest.mark.parametrize(
    "step",
    [
        Step("slow down", 429, {"Retry-After": "0"}),
        Step("slow down", 429, {"Retry-After": formatdate(0, usegmt=True)}),
        Step("oops", 500),
        Step("<html>bad gateway</html>", 502),
        Step("<html>not json</html>", 200),
        Step({"error": {"message": "overloaded"}}, 200),
        Step({"choices": []}, 200),
        Step("too late", wait=1.0),
        said('{"caption": "A face", "eyeglasses": "y'),
        said("here you are: nothing"),
        said(json.dumps({"caption": "A face", "eyeglasses": "maybe"})),
        said(json.dumps({"caption": "", **states(0)})),
        said(json.dumps([states(0)])),
        said(json.dumps({"caption": "A face", **states(0), "extra": 1})),
    ],
    ids=lambda step: str(step.body)[:40],
)
def test_a_passing_fault_costs_nothing_but_time(step, tmp_path, out):
    faces = write_faces(tmp_path / "faces", count=2)
    with serving(first(step)) as stub:
        run(faces, out, spec(stub, timeout=0.4))
    assert [r.labels["attributes"] for r in iter_records(out)] == [known(0), known(1)]
    assert set(stub.asked.values()) == {2}
    assert lines(out / "refused.jsonl") == []


def test_retry_after_is_honoured(tmp_path, out):
    faces = write_faces(tmp_path / "faces", count=2)
    with serving(first(Step("", 429, {"Retry-After": "1"}))) as stub:
        began = time.monotonic()
        run(faces, out, spec(stub, workers=1))
    assert time.monotonic() - began >= 1.9  # two faces, one after the other


def test_a_pause_of_hours_ends_the_run(faces, out):
    with (
        serving(first(Step("", 429, {"Retry-After": "7200"}))) as stub,
        pytest.raises(UserError, match="asks to wait 7200 s"),
    ):
        run(faces, out, spec(stub))


BAD = {
    1: said("I'm sorry, but I can\u2019t help with identifying people."),
    2: said(None, refusal="I cannot describe this person."),
    3: said("", finish="content_filter"),
    4: Step({"error": {"code": "content_filter", "message": "policy"}}, 400),
    5: said(json.dumps({"caption": "A face", "eyeglasses": "perhaps"})),
    6: said('{"caption": "A fa', finish="length"),
}


def test_refusals_and_malformed_answers_are_kept_apart(tmp_path, out):
    faces = write_faces(tmp_path / "faces", count=8)
    with serving(lambda number, _: BAD.get(number) or good(number)) as stub:
        manifest = run(faces, out, spec(stub))
    assert [record.id for record in iter_records(out)] == ["web_0", "web_7"]
    rows = {row["id"]: row for row in lines(out / "refused.jsonl")}
    kinds = {key: row["kind"] for key, row in rows.items()}
    assert kinds == {f"web_{n}": "refusal" if n < 5 else "malformed" for n in BAD}
    assert "identifying" in rows["web_1"]["raw"]
    assert rows["web_2"]["reason"] == "I cannot describe this person."
    assert rows["web_5"]["reason"].startswith("eyeglasses: ")
    assert "perhaps" in rows["web_5"]["raw"]
    assert rows["web_6"]["reason"] == "cut off at the token limit"
    refused = {"openai:stub: malformed": 2, "openai:stub: refusal": 4}
    assert manifest["annotation"]["refused"] == refused
    assert stub.asked[5] == 2  # a malformed answer is asked once more,
    assert stub.asked[1] == 1  # a refusal is not


def test_a_broken_picture_is_kept_apart(tmp_path, out):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no picture")
    Image.new("RGB", (24, 24), (30, 30, 30)).save(folder / "b.png")
    with serving() as stub:
        run(folder, out, spec(stub))
    (record,) = iter_records(out)
    assert (record.id, record.caption) == ("photos_b.png", "Face 3.")
    (row,) = lines(out / "refused.jsonl")
    assert (row["id"], row["kind"]) == ("photos_a.jpg", "unreadable")


@pytest.mark.parametrize(
    "step, words",
    [
        (Step({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401), "check the key"),
        (Step({"error": {"message": "no such model"}}, 404), "base_url"),
        (Step({"error": {"code": "insufficient_quota"}}, 429), "mend the account"),
        (Step("", 301, {"Location": "https://elsewhere.example"}), "base_url"),
    ],
)
def test_asking_on_is_useless(faces, out, monkeypatch, step, words):
    monkeypatch.setenv(KEY_ENV, KEY)
    with serving(lambda *_: step) as stub, pytest.raises(UserError, match=words) as error:
        run(faces, out, spec(stub, key_env=KEY_ENV))
    assert KEY not in str(error.value)
    assert sum(stub.asked.values()) <= 4
    assert not out.exists()


def test_an_endpoint_that_is_down_stops_the_run_and_the_next_one_goes_on(tmp_path, out):
    faces = write_faces(tmp_path / "faces", count=20)
    down = serving(lambda number, _: good(number) if number < 3 else Step("", 503))
    with down as stub, pytest.raises(UserError, match="in a row got no answer"):
        run(faces, out, spec(stub, attempts=2))
    journal = lines(journal_folder(out) / "journal.jsonl")
    assert {row["id"] for row in journal if row["kind"] == "answer"} == {"web_0", "web_1", "web_2"}
    with serving() as second:  # come back at another address
        with pytest.raises(UserError, match="begun with other settings: annotators"):
            run(faces, out, spec(second, name="another"))
        run(faces, out, spec(second))
    assert sorted(second.asked) == list(range(3, 20))
    assert len(list(iter_records(out))) == 20


def test_faces_without_an_answer_are_not_forgotten(faces, out):
    with serving(lambda number, _: Step("bad picture", 400) if number == 2 else good(number)) as s:
        with pytest.raises(UserError, match=r"1 questions got no answer \(web_2: rejected") as told:
            run(faces, out, spec(s))
        assert "--skip-unanswered" in told.value.remedy
        assert not out.exists()
        run(faces, out, spec(s), skip_unanswered=True)
    assert len(list(iter_records(out))) == 5
    (row,) = lines(out / "refused.jsonl")
    assert (row["id"], row["kind"]) == ("web_2", "unanswered")
    assert s.asked == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}


def test_no_key_and_no_picture_is_written(faces, out, monkeypatch, caplog, capsys):
    monkeypatch.setenv(KEY_ENV, KEY)
    caplog.set_level(logging.DEBUG)

    def echo(number, before):
        body = json.dumps(stub.bodies[-1]) + f" {KEY}"
        steps = {1: Step(body, 400), 2: said(body), 3: said(None, refusal=body)}
        return steps.get(number) or good(number)

    with serving(echo) as stub:
        with pytest.raises(UserError) as error:
            run(faces, out, spec(stub, key_env=KEY_ENV))
        journal = (journal_folder(out) / "journal.jsonl").read_text()
        run(faces, out, spec(stub, key_env=KEY_ENV), skip_unanswered=True)
    written = [p.read_text(encoding="utf-8") for p in out.iterdir() if p.suffix != ".parquet"]
    texts = [journal, caplog.text, *capsys.readouterr(), str(error.value), *written]
    for text in texts:
        assert KEY not in text
        assert "base64," not in text
        assert "/9j/" not in text  # how a JPEG starts in base64
    assert "[key]" in journal


def test_cost_is_told_and_may_be_declined(faces, out):
    told = []

    def decline(text, remote):
        told.append((text, remote))
        return False

    with serving() as stub:
        priced = spec(stub, input_price=2, output_price=10, requests_per_minute=2)
        assert run(faces, out, priced, confirm=decline) is None
    ((text, remote),) = told
    assert remote
    assert not journal_folder(out).exists()
    assert "6 faces go to 127.0.0.1" in text
    assert "USD" in text
    assert "at least 3 minutes" in text
    assert stub.asked == {}


def test_max_cost_is_never_exceeded(tmp_path, out):
    faces = write_faces(tmp_path / "faces", count=12)
    priced = {"input_price": 1000, "output_price": 1000, "image_tokens": 1, "max_tokens": 20}
    with serving() as stub:
        with pytest.raises(UserError, match="would exceed --max-cost 1"):
            run(faces, out, spec(stub, **priced), max_cost=1)
        with pytest.raises(UserError, match="needs the prices"):
            run(faces, out, spec(stub), max_cost=1)
    with serving(lambda number, _: good(number, usage=(900, 20))) as stub:
        with pytest.raises(UserError, match="stopped before --max-cost 6"):
            run(faces, out, spec(stub, workers=1, **priced), max_cost=6)
        spent = sum(row["cost"] for row in lines(journal_folder(out) / "journal.jsonl"))
        assert 4 < spent <= 6
        asked = sum(stub.asked.values())
        with pytest.raises(UserError, match="max-cost"):  # what was spent counts on
            run(faces, out, spec(stub, workers=1, **priced), max_cost=6)
        assert sum(stub.asked.values()) == asked
        run(faces, out, spec(stub, workers=1, **priced), max_cost=100)
    assert set(stub.asked.values()) == {1}


def test_two_runs_do_not_share_a_journal(faces, out):
    def again(text, remote):
        with pytest.raises(UserError, match="another run is annotating"):
            run(faces, out, spec(stub))
        return True

    with serving() as stub:
        run(faces, out, spec(stub), confirm=again)
        with pytest.raises(UserError, match="already holds files"):
            run(faces, out, spec(stub))


def test_the_command(faces, out, capsys, monkeypatch):
    command = ["data", "annotate", str(faces), "--out", str(out), "--attributes", ",".join(ASKED)]
    with serving() as stub:
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        assert main([*command, "--annotator", spec(stub)]) == 2
        assert "add --yes" in capsys.readouterr().err
        assert main([*command, "--annotator", spec(stub), "--limit", "2", "--yes"]) == 0
    told = capsys.readouterr().out
    assert "2 faces go to 127.0.0.1" in told
    assert told.splitlines()[-1] == str(out)
    assert stub.served.total() == 2
    assert main(["data", "check", str(out)]) in (0, 1)


@pytest.mark.parametrize(
    "words, message",
    [
        (["openai:m"], "'base_url' is missing"),
        (["openai:m,base_url=https://u:p@host/v1"], "no key in the address"),
        (["openai:m,base_url=https://host/v1,key_env=sk-abc-123"], "NAME of an environment"),
        (["openai:m,base_url=https://host/v1,key_env=STUB_UNSET"], "no environment variable"),
        (["openai:m,base_url=https://host/v1,rpm=5"], "unknown key 'rpm'"),
        (["gemini:m"], "one of openai, hf, artifact"),
        (["hf:a/m", "hf:b/m"], "two annotators are called hf:m"),
        (["hf:no/such/folder"], "not loaded as an image-text-to-text model"),
    ],
)
def test_bad_annotators_are_told_in_a_line(faces, out, capsys, words, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = [part for word in words for part in ("--annotator", word)]
    command = ["data", "annotate", str(faces), "--out", str(out), "--yes", *options]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "sk-abc" not in error
    assert not out.exists()


def test_bad_input_is_told_in_a_line(tmp_path, out, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    who = ["--out", str(out), "--annotator", "hf:x"]
    assert main(["data", "annotate", str(empty), *who]) == 2
    assert "neither a built dataset" in capsys.readouterr().err
    assert main(["data", "annotate", str(empty), *who, "--attributes", "eyeglases"]) == 2
    assert "did you mean 'eyeglasses'" in capsys.readouterr().err
    assert not journal_folder(out).exists()
