"""``docs/readers.md`` says what is true: its table is the registry's, its example reads."""

import re
from pathlib import Path
from types import ModuleType

from source_fixtures import picture

from data_pipeline import sources as registry
from data_pipeline.inspect import inspect
from data_pipeline.protocols import Protocol
from data_pipeline.sources import Source, markdown_table, sources

DOC = Path(__file__).parents[2] / "docs" / "readers.md"
TABLE = re.compile(r"(<!-- sources:.*? -->\n).*?(<!-- /sources -->)", re.DOTALL)


def test_the_table_is_current(golden):
    text = DOC.read_text(encoding="utf-8")
    assert TABLE.search(text)
    golden(DOC, TABLE.sub(lambda found: f"{found[1]}{markdown_table()}\n{found[2]}", text))
    for name in sources():
        assert f"| `{name}` |" in markdown_table()


def test_the_table_holds_one_row_per_source(monkeypatch):
    protocols = {name: Protocol(name=name) for name in ("odd/a", "odd/b")}
    odd = Source("odd", "a | b\nc", lambda *_: iter(()), protocols=protocols, overlaps=("synth",))
    monkeypatch.setattr(registry, "sources", lambda: {"odd": odd})
    rows = markdown_table().splitlines()[2:]
    assert rows == ["| `odd` | a \\| b c | `odd/a`, `odd/b` |  | `synth` |"]


def test_the_example_reads(monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("moods")
    exec(code, module.__dict__)
    monkeypatch.setattr("data_pipeline.inspect.sources", lambda: {"moods": module.SOURCE})
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "moods-README.txt").write_text("")
    (tmp_path / "list.txt").write_text("p1 a.png 1\np1 b.png 0\np2 c.png 2\np3 d.png 7\n")
    found = inspect(tmp_path)
    assert found.ok
    assert "mood '7' has no meaning" in found.text
