import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipeline.looks import FLAT_BITS, both_hashes, near_pairs


def drawing(number):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def difference_hash(image):
    return both_hashes(image)[0]


def apart(one, other):
    return int(np.bitwise_count(one ^ other).sum())


def test_difference_hash_is_the_sign_of_the_gradient():
    ramp = np.tile(np.arange(0, 255, 15, dtype=np.uint8), (16, 1))  # 17 wide: rising everywhere
    rising = difference_hash(Image.fromarray(ramp))
    assert np.bitwise_count(rising).sum() == 256
    assert np.bitwise_count(difference_hash(Image.fromarray(ramp[:, ::-1]))).sum() == 0


def test_difference_hash_survives_encoding_and_scaling_and_tells_pictures_apart():
    hashes = [difference_hash(drawing(i)) for i in range(40)]
    for i in range(40):
        buffer = io.BytesIO()
        drawing(i).save(buffer, "JPEG", quality=60)
        with Image.open(buffer) as again:
            assert apart(hashes[i], difference_hash(again)) <= 12
        assert apart(hashes[i], difference_hash(drawing(i).resize((70, 70)))) <= 12
    assert min(apart(hashes[i], hashes[j]) for i in range(40) for j in range(i)) > 60


def test_the_mirror_image_has_the_other_hash():
    for number in range(10):
        plain, mirrored = both_hashes(drawing(number))
        assert apart(mirrored, difference_hash(ImageOps.mirror(drawing(number)))) <= 4
        assert apart(plain, mirrored) > 60


def turned(hashes, rng, most):
    """The same hashes with up to ``most`` bits turned each."""
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, most + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


def plainly(one, other, most):
    """Every pair compared."""
    found = set()
    for i, row in enumerate(one):
        for j, distance in enumerate(np.bitwise_count(row ^ other).sum(axis=1)):
            ones = [int(np.bitwise_count(hashes).sum()) for hashes in (row, other[j])]
            if distance <= most and all(FLAT_BITS <= n <= 256 - FLAT_BITS for n in ones):
                found.add((i, j, int(distance)))
    return found


@pytest.mark.parametrize(("most", "chunk"), [(12, 64), (12, 1 << 18), (3, 7), (30, 1000)])
def test_near_pairs_are_those_of_the_plain_comparison(most, chunk):
    rng = np.random.default_rng(most)
    one = rng.integers(0, 2**64, (150, 4), dtype=np.uint64)
    one[:20] = one[0]  # a bucket that is full, as of frames of one video
    one[20:30] &= np.uint64(0xFF) * (np.arange(4) == 0).astype(np.uint64)  # near-uniform
    other = turned(one[rng.permutation(150)[:120]], rng, most + 4)
    expected = plainly(one, other, most)
    found = list(near_pairs(one, other, most, chunk))
    assert len(expected) > 90
    assert len(found) == len(set(found))  # each once, whatever the bands that agree
    assert set(found) == expected


def test_nothing_is_near_nothing():
    none, some = np.empty((0, 4), np.uint64), np.full((3, 4), 0x0F0F, np.uint64)
    assert list(near_pairs(none, some)) == list(near_pairs(some, none)) == []
