"""``docs/estimates.md`` holds the figures the formulas give."""

import re
from pathlib import Path

from face_mllm.config import StageConfig
from face_mllm.configio import find_config, load_yaml_model
from face_mllm.plan import COLUMNS, estimate_rows, plan

DOC = Path(__file__).parents[2] / "docs" / "estimates.md"
TABLE = re.compile(r"(<!-- estimates -->\n).*?(<!-- /estimates -->)", re.DOTALL)
STAGES = ("stage1_align", "stage2_vqa", "stage2_vqa_qlora", "stage3_face")


def markdown_table() -> str:
    lines = [f"| stage | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in STAGES:
        stage = load_yaml_model(name, StageConfig)
        sheet, _ = plan(stage, find_config(name).parent, "bfloat16", "sdpa")
        for row in estimate_rows(sheet, (1, 8, 64)):
            lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def test_the_table_is_current(golden):
    text = DOC.read_text(encoding="utf-8")
    assert TABLE.search(text)
    golden(DOC, TABLE.sub(lambda found: f"{found[1]}{markdown_table()}\n{found[2]}", text))
