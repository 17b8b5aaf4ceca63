"""Pictures of the web: the three forms img2dataset writes, columns found by their names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_fixtures import facecaption, laion_face, picture
from test_sources_attr import read, records

from data_pipeline.sources import get_source
from data_pipeline.sources.facecaption import box_column, caption_column
from face_mllm.errors import UserError


def test_tars_parquet_and_files_read_alike(tmp_path):
    laion_face.write(tmp_path / "laion_tar")
    tar = records(read("laion_face", tmp_path / "laion_tar"))
    assert [row.caption for row in tar.values()] == ["a man in Paris", ""]
    assert all(row.image.startswith(b"\xff\xd8") for row in tar.values())
    rows = [
        {"key": key, "jpg": laion_face.jpeg(), "caption": f["caption"], "NSFW": f.get("NSFW")}
        for key, f in laion_face.SAMPLES.items()
    ]
    (tmp_path / "laion_parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "laion_parquet/00000.parquet")
    table = records(read("laion_face", tmp_path / "laion_parquet"))
    for key, facts in laion_face.SAMPLES.items():
        picture(tmp_path / f"laion_files/00000/{key}.jpg")
        (tmp_path / f"laion_files/00000/{key}.json").write_text(json.dumps(facts))
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "laion_files/00000.parquet")
    files = records(read("laion_face", tmp_path / "laion_files"))
    told = [get_source("laion_face").detect(path).name for path in sorted(tmp_path.iterdir())]
    assert [name.split("(")[1] for name in told] == ["files)", "parquet)", "webdataset)"]
    for other in (table, files):
        assert {key: row.caption for key, row in other.items()} == {
            key: row.caption for key, row in tar.items()
        }


def test_runs_in_folders_of_their_own_keep_their_keys_apart(tmp_path):
    for part in ("part_0", "part_1"):
        laion_face.pack(tmp_path / part / "00000.tar", {"000000000.jpg": laion_face.jpeg()})
    (tmp_path / "laion_face_ids.pth").write_bytes(b"")
    found = records(read("laion_face", tmp_path))
    assert list(found) == ["laion_face_part_0_000000000", "laion_face_part_1_000000000"]


def test_ids_and_links_alone_are_said_to_be_that(tmp_path):
    (tmp_path / "laion_face_ids.pth").write_bytes(b"")
    assert get_source("laion_face").detect(tmp_path).name == "ids without pictures"
    with pytest.raises(UserError, match=r"no shards of img2dataset.*--url_col URL"):
        read("laion_face", tmp_path)
    pq.write_table(pa.table({"URL": ["x"]}), tmp_path / "laion_face_part_00000.parquet")
    assert get_source("laion_face").detect(tmp_path).name == "links without pictures"


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet"])
def test_a_broken_shard_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not that" * 100)
    with pytest.raises(UserError, match=f"{name}: not readable as"):
        read("laion_face", tmp_path)


def test_a_broken_json_is_named(tmp_path):
    laion_face.pack(tmp_path / "00000.tar", {"0.jpg": laion_face.jpeg(), "0.json": b"{"})
    with pytest.raises(UserError, match=r"00000\.tar: 0\.json: not readable"):
        read("laion_face", tmp_path)


def test_columns_are_found_by_their_names():
    assert caption_column(["url", "laion_caption", "face_caption"]) == "face_caption"
    assert caption_column(["url", "laion caption", "caption"]) == "caption"
    assert (caption_column(["url"]), box_column(["url"])) == ("", "")
    assert box_column(["url", "Face BBox"]) == "Face BBox"


def test_facecaption_says_what_it_found(tmp_path):
    facecaption.write(tmp_path)
    variant = get_source("facecaption").detect(tmp_path)
    assert variant.name == "FaceCaption-v1.parquet: caption 'face_caption', box 'face_box'"
    (row, _) = read("facecaption", tmp_path)
    assert row.caption == "She has wavy hair."


def test_facecaption_links_alone_or_pictures_inside(tmp_path):
    path = tmp_path / "FaceCaption-v2.parquet"
    pq.write_table(pa.table({"url": ["x"], "caption": ["She."]}), path)
    assert get_source("facecaption").detect(tmp_path).missing == ("00000.tar",)
    with pytest.raises(UserError, match=r"holds links only.*img2dataset"):
        read("facecaption", tmp_path)
    images = [{"bytes": laion_face.jpeg(), "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": images, "caption": ["She.", "He."]}), path)
    found = records(read("facecaption", path))
    assert {key: row.caption for key, row in found.items()} == {
        "facecaption_FaceCaption-v2_00000001": "She."
    }
    with pytest.raises(UserError, match="not FaceCaption"):
        read("facecaption", tmp_path / "none")
