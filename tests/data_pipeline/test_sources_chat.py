"""Conversations: what becomes a question, what is refused, and that a build keeps them."""

import json

import pytest
import yaml
from reading import text
from source_fixtures import llava, messages, picture, sharegpt
from test_sources_attr import read, records

from data_pipeline.build import build
from data_pipeline.records import QA, iter_records
from data_pipeline.sources import get_source
from data_pipeline.sources._chat import PIECE, iter_objects
from face_mllm.errors import UserError


def asked(row):
    return [(qa.task, qa.name, qa.question, qa.answer, qa.choices) for qa in row.qa]


def test_every_answered_turn_is_a_question_without_its_image_token(tmp_path):
    llava.write(tmp_path)
    found = records(read("llava", tmp_path / "chat.json"))
    assert asked(found["chat_000000033471"]) == [
        ("vqa", "all", "Who?", "A man.", ()),
        ("vqa", "all", "Is he smiling?", "Yes.", ()),
    ]
    assert found["chat_000000033471-2"].qa == (QA("vqa", "all", "Describe it.", "A face."),)
    assert found["chat_000000033471-2"].image == str(tmp_path / "faces/a.jpg")


def test_system_turns_and_parts(tmp_path):
    sharegpt.write(tmp_path / "s")
    (row,) = records(read("sharegpt", tmp_path / "s", images=tmp_path / "s/pictures")).values()
    assert row.qa == (QA("vqa", "all", "Who is it?", "A man."),)
    assert row.image == str(tmp_path / "s/pictures/a.jpg")
    messages.write(tmp_path / "m")
    found = records(read("messages", tmp_path / "m"))
    assert found["chat_00000001"].image.startswith(b"\x89PNG")
    assert found["chat_third"].qa == (QA("vqa", "all", "Who?", "A man."),)


def test_shapes_are_told_apart(tmp_path):
    llava.write(tmp_path)
    assert get_source("llava").detect(tmp_path).name == "chat.json: one JSON array"
    assert get_source("messages").detect(tmp_path) is None
    (tmp_path / "broken.json").write_text("[{")
    assert get_source("llava").detect(tmp_path / "chat.json") is not None
    sharegpt.write(tmp_path)
    with pytest.raises(UserError, match=r"not exactly one \.json or \.jsonl file"):
        read("llava", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '[{"conversations": []}, {"conver', "row 2: "),
        ("a.json", '[{"conversations": []}, 3]', "row 2: not an object"),
        ("a.json", '[{"messages": []}]', "row 1: no list 'conversations'"),
        ("a.jsonl", '{"conversations": []}\n\n{"id": ', "row 3: "),
        ("a.jsonl", '{"conversations": ["hello"]}', "row 1: a turn is not an object"),
        ("a.jsonl", '{"conversations": [{"from": "gpt", "value": 3}]}', "row 1: a turn is neither"),
    ],
)
def test_broken_rows_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: {said}"):
        read("llava", tmp_path / name)


def test_broken_base64_is_named(tmp_path):
    messages.write(tmp_path)
    rows = [
        {**messages.ROWS[0], "messages": messages.talk({"image_url": "data:image/png;base64,!"})}
    ]
    (tmp_path / "chat.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="row 1: picture is not base64"):
        read("messages", tmp_path)


def test_arrays_are_streamed_across_pieces(tmp_path):
    rows = [{"id": number, "text": "x" * (PIECE // 3)} for number in range(7)]
    (tmp_path / "big.json").write_text(json.dumps(rows))
    assert [item for _, item in iter_objects(tmp_path / "big.json")] == rows


def recipe(root, **changes):
    entry = {"source": "llava", "root": "chat.json", "split": "train", **changes.pop("entry", {})}
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sources": [entry], **changes}))
    return path


def test_a_build_keeps_the_questions_of_a_source(tmp_path):
    llava.write(tmp_path)
    manifest = build(recipe(tmp_path), tmp_path / "out")
    assert manifest["splits"]["train"]["tasks"] == {"vqa": 4}
    rows = {row.id: row for row in iter_records(tmp_path / "out")}
    assert [qa.question for qa in rows["chat_000000033471"].qa] == ["Who?", "Is he smiling?"]
    build(recipe(tmp_path, entry={"tasks": ["vqa"]}), tmp_path / "same")
    assert [row.qa for row in iter_records(tmp_path / "same")] == [row.qa for row in rows.values()]
    build(recipe(tmp_path, entry={"tasks": ["age"]}), tmp_path / "none")
    assert [row.qa for row in iter_records(tmp_path / "none")] == [()] * 3


def test_a_build_removes_questions_on_held_out_attributes(tmp_path):
    llava.write(tmp_path)
    manifest = build(recipe(tmp_path, holdout_attributes=["smiling"]), tmp_path / "out")
    assert manifest["leak_check"]["questions_removed"] == 1
    assert manifest["splits"]["train"]["tasks"] == {"vqa": 3}


def test_pictures_of_an_absolute_path_stay(tmp_path):
    picture(tmp_path / "far/a.jpg")
    row = {"image": str(tmp_path / "far/a.jpg"), "conversations": llava.turns("Who?", "I.")}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (found,) = read("llava", tmp_path / "a.json")
    assert found.image == str(tmp_path / "far/a.jpg")


SHAPES = {
    "llava": {"id": "a", "image": "photos\\a b.png", "conversations": "TURNS"},
    "sharegpt": {"images": ["photos/a b.png"], "conversations": "TURNS"},
    "messages": {"images": [{"path": "photos/a b.png"}], "messages": "TURNS"},
}
SAID = [("Who is it?", "A man."), ("Does he smile?", "Yes.")]


def turns(name, said):
    """The same exchange in the words of one shape."""
    first, *rest = [text for pair in said for text in pair]
    words = [f"<image>\n{first}", *rest]
    if name == "messages":
        roles = ("user", "assistant") * len(said)
        return [{"role": r, "content": text} for r, text in zip(roles, words, strict=True)]
    roles = ("human", "gpt") * len(said)
    return [{"from": r, "value": text} for r, text in zip(roles, words, strict=True)]


@pytest.mark.parametrize("name", SHAPES)
def test_one_conversation_says_the_same_in_every_shape(tmp_path, name):
    picture(tmp_path / "photos" / "a b.png")
    item = {k: turns(name, SAID) if v == "TURNS" else v for k, v in SHAPES[name].items()}
    text(tmp_path / "chat.json", json.dumps([item]))
    (record,) = read(name, tmp_path)
    assert [(qa.task, qa.question, qa.answer) for qa in record.qa] == [("vqa", *p) for p in SAID]
    assert record.image == str(tmp_path / "photos" / "a b.png")


@pytest.mark.parametrize("kinds", [("text", "text"), ("input_text", "output_text")])
def test_parts_of_endpoints_old_and_new(tmp_path, kinds):
    photo = tmp_path / "a b.png"
    picture(photo)
    parts = [{"type": "image_url", "image_url": {"url": photo.as_uri()}}, {"type": kinds[0]}]
    asked = {"role": "user", "content": [*parts, {"type": kinds[0], "text": "Who?"}]}
    said = {"role": "assistant", "content": [{"type": kinds[1], "text": "A man."}]}
    text(tmp_path / "chat.json", json.dumps([{"messages": [asked, said]}]))
    (record,) = read("messages", tmp_path)
    assert record.image == str(photo)
    assert [(qa.question, qa.answer) for qa in record.qa] == [("Who?", "A man.")]
