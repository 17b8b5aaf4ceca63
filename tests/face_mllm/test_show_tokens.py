"""The contact sheet shows the tokens that training sees."""

import re

import pytest

from data_pipeline.records import QA, iter_records
from data_pipeline.show import show, show_html
from data_pipeline.show_tokens import default_tokenizer, load_tokens
from face_mllm.errors import UserError


@pytest.fixture
def artifact(make_model, tmp_path):
    _, processor = make_model()
    processor.save(tmp_path / "model")
    return processor, tmp_path / "model"


def test_the_tokens_that_carry_loss_are_the_targets_of_training(artifact, tiny_data):
    processor, folder = artifact
    tokens = load_tokens(str(folder))
    for record in list(iter_records(tiny_data))[:4]:
        row = processor.tree_row([(qa.question, qa.answer, qa.weight) for qa in record.qa])
        shown = [token.text for qa in record.qa for token in tokens.branch(qa) if token.loss]
        targets = [processor.tokenizer.decode([token]) for token in row.targets]
        assert shown == targets


def test_answers_and_their_end_are_marked_and_questions_are_not(artifact):
    tokens = load_tokens(str(artifact[1])).branch(QA("age", "all", "How old?\nNow", "35 years"))
    assert "".join(token.text for token in tokens if token.loss) == "35 years<|im_end|>"
    read = "".join(token.text for token in tokens if not token.loss)
    assert read == "⏎How old?⏎Now<|im_end|>⏎<|im_start|>assistant⏎"


def test_the_beginning_holds_system_message_and_picture_once(artifact):
    processor, folder = artifact
    words = [token.text for token in load_tokens(str(folder)).prefix()]
    assert words[-1] == f"picture x {processor.image_tokens}"
    assert "Look." in "".join(words)


def test_a_character_of_several_tokens_is_shown_by_its_bytes(artifact):
    branch = load_tokens(str(artifact[1])).branch(QA("vqa", "x", "Why?", "é"))
    assert [token.text for token in branch if token.loss] == ["Ã", "©", "<|im_end|>"]


def test_a_folder_with_a_tokenizer_will_do(tiny_parts):
    tokens = load_tokens(str(tiny_parts / "llm"))
    assert tokens.prefix()[-1].text == "picture"
    with pytest.raises(UserError, match="no such model folder"):
        load_tokens("./nothing")


def test_the_sheet_can_be_browsed_and_marks_the_tokens(artifact, tiny_data, tmp_path):
    html = show_html(tiny_data, tmp_path / "s.html", 6, tokenizer=str(artifact[1])).read_text()
    assert "<b>&lt;|im_end|&gt;</b>" in html
    assert f"picture x {artifact[0].image_tokens}" in html
    for choice in ("split", "source", "task"):
        assert f'<select id="{choice}">' in html
    assert "<option>action_unit</option><option>age</option>" in html.replace("\n", "")
    assert html.count('data-task="age"') == html.count("<article") == 6
    assert not re.search(r'(?:src|href)="(?!data:)', html)


def test_without_the_embedded_model_the_words_are_shown(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path / "cache"))
    assert default_tokenizer() is None
    show(tiny_data, tmp_path / "s.html", 3)
    html = (tmp_path / "s.html").read_text()
    assert "Give <code>--tokenizer</code>" in html
    assert 'class="tokens"' not in html
