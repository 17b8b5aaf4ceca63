"""The cache on disk: whole parts, two writers, kills, and states equal to the live ones."""

import hashlib
import multiprocessing
import signal
import time

import numpy as np
import pytest
import torch
from conftest import TOWERS, face_jpeg
from safetensors.torch import load_file
from transformers import AutoModel

import face_mllm.features.cache as room
from data_pipeline.records import FaceRecord
from face_mllm.features import FeatureCache, FrozenTower, content_key
from face_mllm.model.vision import image_tokens


def pairs(numbers):
    return [(hashlib.sha256(str(n).encode()).digest(), n) for n in numbers]


def squares(numbers):
    return {"square": torch.tensor([[float(n * n)] for n in numbers])}


def test_only_unknown_items_are_computed_and_rows_come_in_the_order_asked(tmp_path):
    asked = []

    def compute(numbers):
        asked.append(numbers)
        return squares(numbers)

    cache = FeatureCache({"of": "squares"}, tmp_path)
    keys = cache.fill(pairs([3, 1, 3, 2]), compute, batch=2)
    assert asked == [[3, 1], [2]]
    assert cache.gather(keys)["square"].flatten().tolist() == [9, 1, 9, 4]
    again = FeatureCache({"of": "squares"}, tmp_path)
    again.fill(pairs([2, 5]), compute, batch=2)
    assert asked[2:] == [[5]]
    assert again.gather(keys[::-1])["square"].flatten().tolist() == [4, 9, 1, 9]
    assert FeatureCache({"of": "cubes"}, tmp_path).folder != cache.folder


def test_parts_close_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PART_ROWS", 4)
    cache = FeatureCache({}, tmp_path)
    cache.fill(pairs(range(10)), squares, batch=2)
    sizes = sorted(len(load_file(p)["keys"]) for p in cache.folder.glob("part-*"))
    assert sizes == [2, 4, 4]
    monkeypatch.setattr(room, "PART_BYTES", 16)  # two numbers in fp64
    other = FeatureCache({"wide": True}, tmp_path)
    other.fill(pairs(range(4)), lambda n: {"square": squares(n)["square"].double()}, batch=2)
    assert len(list(other.folder.glob("part-*"))) == 2


def test_a_failure_keeps_what_was_computed_and_leaves_no_partial_file(tmp_path):
    def compute(numbers):
        if 5 in numbers:
            raise KeyboardInterrupt
        return squares(numbers)

    cache = FeatureCache({}, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(pairs(range(8)), compute, batch=2)
    found = FeatureCache({}, tmp_path)
    assert len(found) == 4
    assert {path.name.split("-")[0] for path in found.folder.iterdir()} == {"identity.json", "part"}


def write_slowly(root):
    room.PART_ROWS = 4

    def compute(numbers):
        time.sleep(0.02)
        return squares(numbers)

    FeatureCache({}, root).fill(pairs(range(60)), compute, batch=2)


def test_two_writers_and_a_kill_leave_a_cache_that_is_right(tmp_path):
    context = multiprocessing.get_context("fork")
    killed, other = (context.Process(target=write_slowly, args=(tmp_path,)) for _ in "ab")
    killed.start()
    other.start()
    while not list(tmp_path.rglob("part-*")):
        time.sleep(0.005)
    killed.kill()
    other.join(60)
    killed.join(60)
    assert (other.exitcode, killed.exitcode) == (0, -signal.SIGKILL)
    cache = FeatureCache({}, tmp_path)
    found = cache.gather([key for key, _ in pairs(range(60))])["square"]
    assert found.flatten().tolist() == [float(n * n) for n in range(60)]


def test_a_reader_finds_what_another_process_wrote_since(tmp_path):
    reader = FeatureCache({}, tmp_path)
    keys = FeatureCache({}, tmp_path).fill(pairs([7]), squares)
    assert reader.gather(keys)["square"].item() == 49
    with pytest.raises(KeyError):
        reader.gather([b"nobody"])


@pytest.fixture
def faces():
    rng = np.random.default_rng(5)
    return [
        FaceRecord(f"f{n}", "toy", "train", "", face_jpeg(bool(n % 2), rng), {}) for n in range(12)
    ]


@pytest.mark.parametrize("kind", ["clip", "siglip", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_states_are_the_live_ones_bit_for_bit(kind, dtype, faces, image_processor, tmp_path):
    torch.manual_seed(0)
    tower = AutoModel.from_config(TOWERS[kind]).to(dtype)
    frozen = FrozenTower(tower, image_processor, -1, "full", group=4)
    cache = frozen.cache(tmp_path)
    frozen.fill(cache, faces[3:8])  # others are computed in other company
    keys = frozen.fill(cache, faces)
    assert keys == [content_key(face) for face in faces]
    images = [face.open_image() for face in faces]
    found = FeatureCache(frozen.identity(), tmp_path).gather(keys)["states"]
    assert found.dtype == dtype
    assert torch.equal(found, frozen.states(images))
    assert torch.equal(found[5:6], frozen.states(images[5:6]))
    pixels = image_processor(images, return_tensors="pt")["pixel_values"].to(dtype)
    with torch.no_grad():
        direct = image_tokens(tower, pixels, -1, "full")
    torch.testing.assert_close(found, direct, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


def test_what_decides_a_state_is_in_its_identity(image_processor):
    torch.manual_seed(0)
    tower = AutoModel.from_config(TOWERS["clip"])

    def identity(layer=-1, select="full", processor=image_processor):
        return str(FrozenTower(tower, processor, layer, select).identity())

    first = identity()
    assert first == identity()
    assert first != identity(layer=-2)
    assert first != identity(select="patch")
    other = type(image_processor)(**{**image_processor.to_dict(), "image_mean": [0.1, 0.2, 0.3]})
    assert first != identity(processor=other)
    with torch.no_grad():
        tower.encoder.layers[0].mlp.fc1.weight[3, 4] += 1e-3  # one number inside
    assert first != identity()
    tower.bfloat16()
    assert first != identity()
