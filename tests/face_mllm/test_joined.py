"""An expert joined to tiny models: token, verdict and loss against separate passes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from exp_clip_doubles import write_clip as write_text_clip
from joined_faces import CLASSES, WIDTH, write_clip, write_exp_clip, write_faces, write_mask_fer
from torch.nn import functional

from data_pipeline.records import FaceRecord, load_split
from face_mllm.errors import UserError
from face_mllm.experts.joined.expert import open_expert
from face_mllm.experts.joined.join import join
from face_mllm.experts.joined.rows import ExpertRows
from face_mllm.experts.joined.settings import ExpertBase, ExpertSettings
from face_mllm.experts.joined.verdict import Verdicts, told, verdict, write_verdicts
from face_mllm.experts.loading import kind_of
from face_mllm.experts.mask_fer import MaskFerExpert
from face_mllm.model.vision import image_tokens
from face_mllm.passes import without_labels
from face_mllm.rows import RowCollator, RowItem, model_inputs, split_rows
from face_mllm.scoring import LikelihoodScorer
from face_mllm.verify import separate_loss

QAS = [("Which expression?", "anger", 1.0), ("How old?", "30 years", 0.5)]


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("joined")
    write_faces(root / "data")
    clip = write_clip(root / "clip", image_processor, WIDTH)
    write_mask_fer(root / "mask_fer", clip, root / "elsewhere")
    write_mask_fer(root / "patches", clip, root / "elsewhere", kind="patch_head")
    write_text_clip(root / "text_clip")
    write_exp_clip(root / "exp_clip", root / "text_clip")
    return root


@pytest.fixture
def faces(place):
    return [
        FaceRecord.from_row(row) for row in load_split(place / "data", "train").select(range(6))
    ]


@pytest.fixture
def joined(place, make_model):
    """A tiny model with an expert."""

    def make(expert="mask_fer", dtype=torch.float32, along=False, **ways):
        model, processor = make_model("clip", "llama", dtype)
        base = ExpertBase(kind_of(place / expert), str(place / expert), **ways)
        join(model, processor, base, place / expert, trains_along=along)
        return model.to(dtype).eval(), processor

    return make


def items(model, processor, faces, settings=None):
    rows = ExpertRows(processor.expert, settings)
    found = []
    for number, face in enumerate(faces):
        row = processor.tree_row(QAS[: 1 + number % 2])
        picture = processor.pixels([face.open_image()])[0].to(model.dtype)
        given = rows.inputs(face, sum(row.weights))
        given = {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in given.items()
        }
        found.append(RowItem(row, picture, number, number, given))
    return found


def by_hand(model, processor, face, question, answer):
    """Loss of one question in one ordinary pass, its embeddings laid side by side here."""
    branch, start = processor.branch_ids(question, answer)
    before = [x for x in processor.prefix_ids() if x != processor.image_token_id]
    pixels = processor.pixels([face.open_image()]).to(model.dtype)
    states = image_tokens(model.vision_tower, pixels, -1, "full")
    vector = processor.expert.look([face.open_image()]).vectors.to(model.dtype)
    table = model.get_input_embeddings()
    parts = [
        table(torch.tensor(before)),
        model.projector(states)[0],
        model.expert(vector),
        table(torch.tensor(branch)),
    ]
    embeds = torch.cat(parts)[None]
    first = embeds.shape[1] - len(branch) + start
    logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits[0]
    targets = torch.tensor(branch[start:])
    return functional.cross_entropy(logits[first - 1 : -1], targets, reduction="sum")


@pytest.mark.parametrize("expert", ["mask_fer", "patches", "exp_clip"])
def test_packed_rows_with_a_token_equal_separate_passes_in_fp64(joined, faces, expert):
    model, processor = joined(expert, torch.float64, token=True)
    visits = items(model, processor, faces)
    batch = RowCollator(processor.pad_id, 4096)(visits)
    assert len(batch["input_ids"]) < len(faces)  # several faces share a row
    packed = model(**model_inputs(batch)).loss
    wanted = sum(
        weight * by_hand(model, processor, face, question, answer)
        for number, face in enumerate(faces)
        for question, answer, weight in QAS[: 1 + number % 2]
    )
    assert packed.item() == pytest.approx(wanted.item(), rel=1e-12)
    one = torch.autograd.grad(packed, list(model.expert.parameters()))
    two = torch.autograd.grad(wanted, list(model.expert.parameters()))
    for got, expected in zip(one, two, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # RMSNorm is fp32


def test_passes_of_a_packed_batch_add_up_with_the_experts_own_loss(joined, faces):
    model, processor = joined("mask_fer", torch.float64, along=True, token=True)
    settings = ExpertSettings(head="full", loss_weight=0.3)
    batch = RowCollator(processor.pad_id)(items(model, processor, faces, settings))
    whole = model(**model_inputs(batch)).loss
    parts = split_rows(batch, 2)
    summed = sum(model(**model_inputs(part)).loss for part in parts)
    assert summed.item() == pytest.approx(whole.item(), rel=1e-12)
    assert model(**model_inputs(without_labels(parts[0]))).loss.item() == 0


@pytest.mark.parametrize("expert", ["mask_fer", "patches", "exp_clip"])
def test_the_experts_own_loss_is_weighed_by_its_faces_answers(joined, faces, expert):
    """lambda * sum of (answer weight of a labelled face) * (the expert's loss of it)."""
    model, processor = joined(expert, torch.float64, along=True, token=True)
    settings = ExpertSettings(head="full", loss_weight=0.3)
    visits = items(model, processor, faces, settings)
    batch = model_inputs(RowCollator(processor.pad_id)(visits))
    with_it = model(**batch).loss
    batch.pop("expert_weights")
    without = model(**batch).loss
    wanted = 0.0
    for visit, face in zip(visits, faces, strict=True):
        if "expression" in face.labels:
            vector = processor.expert.look([face.open_image()]).vectors.double()
            target = torch.tensor([CLASSES.index(face.labels["expression"])])
            if expert == "exp_clip":
                target = torch.tensor([processor.expert.classes.index(face.labels["expression"])])
            own = model.expert_head.face_losses(vector, target)
            wanted += 0.3 * sum(visit.row.weights) * own.item()
    assert sum("expression" in face.labels for face in faces) == 5
    assert (with_it - without).item() == pytest.approx(wanted, rel=1e-6)
    with_it.backward()
    assert all(p.grad is not None for p in model.expert_head.net.parameters() if p.requires_grad)


def test_mask_fers_own_loss_is_its_papers(joined, faces):
    from face_mllm.experts.mask_fer.model import losses

    model, processor = joined("mask_fer", along=True, token=True)
    vectors = processor.expert.look([face.open_image() for face in faces]).vectors
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    head = model.expert_head
    per_face = head.face_losses(vectors, targets)
    whole = losses(head.net, vectors, targets, None, head.weights).total
    torch.testing.assert_close(per_face.mean(), whole)


@pytest.mark.parametrize("expert", ["mask_fer", "patches", "exp_clip"])
def test_a_head_in_the_model_makes_the_vectors_the_frozen_expert_makes(joined, faces, expert):
    frozen, processor = joined(expert, token=True)
    along, other = joined(expert, along=True, token=True)
    along.expert.load_state_dict(frozen.expert.state_dict())
    batches = []
    for model, each in ((frozen, processor), (along, other)):
        given = model_inputs(RowCollator(each.pad_id)(items(model, each, faces)))
        given.pop("expert_weights", None)
        batches.append(model(**given).loss.item())
    assert batches[0] == pytest.approx(batches[1], rel=1e-6)


def test_batch_norm_of_a_head_that_trains_keeps_its_statistics(joined, faces):
    model, processor = joined("mask_fer", along=True, token=True)
    model.train()
    before = {n: b.clone() for n, b in model.expert_head.named_buffers()}
    model(**model_inputs(RowCollator(processor.pad_id)(items(model, processor, faces))))
    after = dict(model.expert_head.named_buffers())
    assert before
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_without_token_and_text_nothing_changes_to_the_last_bit(joined, make_model, faces):
    plain, processor = make_model("clip", "llama")
    model, other = joined("mask_fer", fusion=True)
    assert model.state_dict().keys() == plain.state_dict().keys()
    asked = [("Which expression?", ("anger", "fear")), ("How old?", ("30 years", "35 years"))]
    image = faces[0].open_image()
    one, two = LikelihoodScorer(plain, processor), LikelihoodScorer(model, other)
    for got, wanted in zip(two.score(image, asked), one.score(image, asked), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert one.generate(image, "How old?", 5) == two.generate(image, "How old?", 5)


@pytest.mark.parametrize("ways", [{"token": True}, {"text": True}, {"token": True, "text": True}])
def test_scores_and_answers_with_an_expert_equal_separate_passes(joined, faces, ways):
    model, processor = joined("mask_fer", **ways)
    image = faces[1].open_image()
    asked = [("Which expression?", ("anger", "happiness")), ("How old?", ("30 years", "5"))]
    scores = LikelihoodScorer(model, processor, max_tokens=64).score(image, asked)
    look = processor.expert.look([image])
    words = verdict(CLASSES, look.logs[0], 2) if ways.get("text") else ""
    given = {"expert_features": look.vectors} if ways.get("token") else {}
    pixels = processor.pixels([image])
    for (question, choices), row in zip(asked, scores, strict=True):
        for choice, score in zip(choices, row, strict=True):
            branch, start = processor.branch_ids(told(words, question), choice)
            ids = torch.tensor([[*processor.prefix_ids(), *branch]])
            first = ids.shape[1] - len(branch) + start
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=pixels, **given).logits
            picked = logits[0, first - 1 : -1].log_softmax(-1).gather(1, ids[0, first:, None])
            assert score == pytest.approx(picked.sum().item(), abs=1e-4)
    prompt = processor.prompt_ids([(told(words, "How old?"), None)])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.tensor([prompt])
            logits = model(input_ids=ids, pixel_values=pixels, **given).logits
            prompt.append(int(logits[0, -1].argmax()))
    said = processor.tokenizer.decode(prompt[-4:], skip_special_tokens=True).strip()
    model.generation_config.eos_token_id = None
    assert LikelihoodScorer(model, processor).generate(image, "How old?", 4) == said


@pytest.mark.parametrize("expert", ["mask_fer", "exp_clip"])
def test_two_pictures_in_one_row_have_each_its_own_token_behind_them(joined, faces, expert):
    model, processor = joined(expert, torch.float64, token=True)
    images = [face.open_image() for face in faces[:2]]
    assert faces[0].labels != faces[1].labels
    vectors = processor.expert.look(images).vectors.double()
    pixels = processor.pixels(images).double()
    ids = torch.tensor([processor.prompt_ids([("Who smiles?", None)])])
    both = model.embed(torch.cat([ids, ids], 1), pixels, expert_vectors=vectors)
    each = [
        model.embed(ids, pixels[k : k + 1], expert_vectors=vectors[k : k + 1]) for k in range(2)
    ]
    torch.testing.assert_close(both, torch.cat(each, 1), rtol=0, atol=1e-12)
    last = int((ids[0] == processor.image_token_id).nonzero().max())
    tokens = model.expert(vectors)
    torch.testing.assert_close(both[0, last], tokens[0])
    torch.testing.assert_close(both[0, last + ids.shape[1]], tokens[1])


@pytest.mark.parametrize("expert", ["mask_fer", "exp_clip"])
def test_under_autocast_the_experts_own_loss_stays_exact(joined, faces, expert):
    """Cosines times a hundred lose whole tenths of a nat in bf16."""
    model, processor = joined(expert, along=True, token=True)
    settings = ExpertSettings(head="full", loss_weight=0.3)
    batch = RowCollator(processor.pad_id)(items(model, processor, faces, settings))
    batch = model_inputs(batch)
    weights = batch["expert_weights"]

    def own(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            vectors = model.expert_vectors(batch["expert_features"], batch.get("expert_seen"))
            with_it = model(**batch).loss
            without = model(**{**batch, "expert_weights": torch.zeros_like(weights)}).loss
        return vectors, (with_it - without).item()

    (exact, wanted), (vectors, got) = own(False), own(True)
    torch.testing.assert_close(vectors, exact)
    assert got == pytest.approx(wanted, rel=1e-4)


def test_the_first_batch_check_knows_the_token(joined, faces):
    model, processor = joined("exp_clip", token=True)
    item = items(model, processor, faces[:1])[0]
    qa = faces[0].qa[0]
    loss = separate_loss(model, processor, qa, item.picture[None], item.expert)
    wanted = by_hand(model, processor, faces[0], qa.question, qa.answer)
    assert loss.item() == pytest.approx(qa.weight * wanted.item(), rel=1e-5)


def test_a_forgotten_expert_is_an_error(joined, faces):
    model, processor = joined("mask_fer", token=True)
    ids = torch.tensor([processor.prompt_ids([("How old?", None)])])
    with pytest.raises(ValueError, match="expert_features"):
        model(input_ids=ids, pixel_values=processor.pixels([faces[0].open_image()]))


def test_verdicts_in_words_and_from_a_file(tmp_path, faces):
    logs = torch.tensor([0.07, 0.82, 0.11]).log()
    assert verdict(CLASSES, logs, 2) == "Expert: happiness 0.82, anger 0.11."
    assert told("", "Why?") == "Why?"
    path = tmp_path / "verdicts.parquet"
    write_verdicts(path, CLASSES, {faces[0].id: logs}, {"folds": 5})
    torch.testing.assert_close(Verdicts(path, CLASSES).of(faces[0].id).float(), logs)
    with pytest.raises(UserError, match=faces[1].id):
        Verdicts(path, CLASSES).of(faces[1].id)
    with pytest.raises(UserError, match="the expert knows"):
        Verdicts(path, CLASSES[:2])
    path.write_text("nothing")
    with pytest.raises(UserError, match="not a file of verdicts"):
        Verdicts(path, CLASSES)


def test_a_joined_expert_answers_as_on_its_own(place, faces):
    images = [face.open_image() for face in faces]
    alone = MaskFerExpert.from_pretrained(place / "mask_fer")
    expert = open_expert(place / "mask_fer")
    torch.testing.assert_close(expert.log_probabilities(images), alone.log_probabilities(images))
    torch.testing.assert_close(expert.look(images).vectors, alone.vectors(images))
    base = dataclasses.replace(expert.base, token=True)
    assert base.to_json()["token"] is True
    with pytest.raises(UserError, match="no expert there"):
        kind_of(place / "data")
