"""The meter against a run of known size; losses by task against the model's own; the card."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch.nn import functional

import face_mllm.train as training
from face_mllm.artifact import read_artifact
from face_mllm.compose import Bases
from face_mllm.config import StageConfig
from face_mllm.estimate import decoder_of
from face_mllm.flops import StepFormula
from face_mllm.meter import PHASES, RunMeter, data_advice, measured_peak, report_table
from face_mllm.model.attention import dense_mask, tree_mask_mod
from face_mllm.model_card import base_licences, data_sources, model_card
from face_mllm.rows import FaceRows, RowCollator, model_inputs
from face_mllm.trainer import METRICS_FILE, loss_words


def stage(parts, data, out, **changes):
    settings = {
        "stage": "stage2_vqa",
        "data": data,
        "out": out,
        "precision": "fp32",
        "vision": {"model": str(parts / "vision")},
        "llm": {"model": str(parts / "llm"), "train": "lora"},
        "max_steps": 3,
        "faces_per_device": 4,
        "accumulation": 2,
        "log_steps": 1,
        **changes,
    }
    return StageConfig.model_validate(settings)


@pytest.fixture(scope="module")
def run(tiny_parts, tiny_data, tmp_path_factory):
    """A finished run of three steps of eight faces, two questions each."""
    out = tmp_path_factory.mktemp("run") / "artifact"
    said = []
    config = stage(tiny_parts, tiny_data, out, report_to=["tensorboard"])
    folder = training.train(config, lambda step, steps, text: said.append(text))
    return folder, said


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_the_report_counts_what_the_run_did(run):
    folder, _ = run
    report = read_artifact(folder).chain[-1]["speed"]
    assert (report["steps"], report["faces"], report["questions"]) == (3, 24, 48)
    assert report["questions_per_second"] == pytest.approx(48 / report["seconds"], rel=0.05)
    assert sum(report[f"time_{phase}"] for phase in PHASES) == pytest.approx(1, abs=0.01)
    assert report["share_of_peak"] > 0
    assert report["llm_share_of_peak"] > 0
    assert lines(folder)[-1]["run/questions"] == 48
    assert report_table(report).row_count == 4


def test_every_line_has_losses_by_task_that_average_to_the_loss(run):
    """Each of the four faces has one AU and one age question: the mean weighs them by tokens."""
    folder, said = run
    logged = [line for line in lines(folder) if "loss" in line]
    assert len(logged) == 3
    for line in logged:
        low, high = sorted((line["loss/action_unit"], line["loss/age"]))
        assert low < line["loss"] < high
        assert line["questions_per_second"] > 0
    assert "action_unit" in said[-1]
    assert "questions/s" in said[-1]


def test_losses_by_task_are_the_model_s_own(make_model, tiny_data):
    model, processor = make_model()
    rows = FaceRows(tiny_data, processor, {}, 2, 512, seed=0)
    batch = RowCollator(processor.pad_id)([rows[0], rows[1]])
    tasks = batch["label_tasks"]
    trainings = {"vision": "frozen", "projector": "full", "llm": "frozen"}
    formula = StepFormula(model, decoder_of(model, "frozen"), trainings)
    meter = RunMeter(model, formula, rows.tasks, "cpu", "float32")
    meter.saw(batch)
    outputs = model(**model_inputs(batch))
    meter.note(tasks, outputs.label_losses, batch["label_weights"])
    found = meter.figures(lambda tensor: tensor)
    losses = functional.cross_entropy(outputs.logits, batch["label_targets"], reduction="none")
    known = batch["label_weights"] > 0  # the rest is padding
    for code, task in enumerate(rows.tasks[:-1]):
        mean = losses[known & (tasks == code)].mean().item()
        assert found[f"loss/{task}"] == pytest.approx(mean, abs=1e-4)
    assert rows.tasks == ["action_unit", "age", "other"]
    assert "loss/other" not in found
    assert (meter.faces, meter.pictures, meter.questions) == (2, 2, 4)
    assert meter.figures(lambda tensor: tensor).keys() == {"questions_per_second"}


def test_only_needed_operations_count_so_packing_and_padding_change_nothing(make_model, tiny_data):
    """Reference: the pairs of the dense mask less padding's own, products of unpadded tokens."""
    model, processor = make_model()
    rows = FaceRows(tiny_data, processor, {}, 2, 512, seed=0)
    trainings = {"vision": "frozen", "projector": "full", "llm": "frozen"}
    decoder = decoder_of(model, "frozen")
    found = []
    for budget in (0, 512):
        batch = RowCollator(processor.pad_id, budget)([rows[visit] for visit in range(3)])
        meter = RunMeter(
            model, StepFormula(model, decoder, trainings), rows.tasks, "cpu", "float32"
        )
        meter.saw(batch)
        found.append(meter.llm_flops)
        ends = batch["subtree_ends"]
        shape = (*ends.shape, ends.device)
        pairs = int(dense_mask(tree_mask_mod(ends, batch["position_ids"]), *shape).sum())
        real = sum(len(rows[visit].row.tree) for visit in range(3))
        pairs -= ends.numel() - real
        assert meter.tokens == real
        labels = int((batch["label_weights"] > 0).sum())
        products = 2 * 2 * real * decoder.product_weights + 4 * labels * 32 * 400
        assert meter.llm_flops == 12 * pairs * 32 * 2 + products
    assert found[0] == found[1]


def test_sums_of_several_processes_are_what_is_reported(make_model):
    """A second process that did the same doubles every count and leaves every mean."""
    model, _ = make_model()
    trainings = {"vision": "frozen", "projector": "full", "llm": "frozen"}
    formula = StepFormula(model, decoder_of(model, "frozen"), trainings)
    meter = RunMeter(model, formula, ["age", "other"], "cpu", "float32")
    meter.questions += 5
    meter.note(torch.tensor([0, 0]), torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))
    assert meter.figures(lambda tensor: 2 * tensor)["loss/age"] == pytest.approx(1.5)
    assert meter.report(lambda tensor: 2 * tensor, 2)["questions"] == 10


def test_the_peak_is_that_of_matrix_products():
    """One product of the same size, timed by itself, is never much faster than the peak."""
    assert measured_peak("cpu", "float32", 0.05) > 1e8


def test_a_starved_run_is_told_what_to_set():
    assert data_advice({"time_data": 0.04}, 0) == ""
    assert "raise workers (now 2)" in data_advice({"time_data": 0.25}, 2)


def test_progress_words():
    logs = {"loss": 1.0, "loss/age": 2.0, "loss/caption": 0.5, "questions_per_second": 3.21}
    assert loss_words(logs) == "loss 1.000 (age 2.00, caption 0.50), 3.2 questions/s"
    assert loss_words({"loss": 1.0, "loss/age": 1.0}) == "loss 1.000"


def test_tensorboard_files_lie_beside_the_artifact(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = run
    events = EventAccumulator(str(folder.with_name(f"{folder.name}.tensorboard")))
    events.Reload()
    assert {"train/loss", "train/loss/age"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss/age")) == 3


def test_the_card_says_what_the_model_is_made_of(run, tiny_data):
    folder, _ = run
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "face-mllm"
    entry = read_artifact(folder).chain[-1]
    for words in ("Hyper-parameters", "learning_rate: 0.0002", "r: 16", "GFLOP/s measured"):
        assert words in card
    assert card.count("dropout:") == 1  # of the LLM's adapter; the tower has none
    assert f"torch {torch.__version__}" in card
    assert entry["held_out"] == ["smiling"]
    assert "held out of every stage: smiling" in card
    assert "| vision tower |" in card
    assert "Do not use this to identify" in card


def test_the_card_names_sources_protocols_and_licences(tmp_path):
    source = {
        "source": "rafdb",
        "protocol": "rafdb/basic",
        "licences": {"research only": 3},
        "kept": {"train": 12271, "test": 3068},
    }
    entry = {"stage": "s3", "steps": 1, "first_loss": 2.0, "last_loss": 1.0}
    entry["sources"] = data_sources({"sources": [source]})
    (tmp_path / "README.md").write_text("---\nlicense: llama2\n---\n# a model\n")
    bases = Bases(vision="embedded:face-clip", llm=str(tmp_path), llm_quant="nf4")
    entry["licences"] = base_licences(bases)
    card = model_card(bases, [entry], ["llm"])
    assert "| s3 | rafdb | rafdb/basic | 12271 | research only |" in card
    assert "llama2" in card
    assert "apache-2.0" in card
    assert "NF4" in card


def test_a_dataset_without_sources_is_no_error():
    assert data_sources({}) == []
