"""Golden snapshots for every test: text that may change only on purpose."""

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--accept-golden",
        action="store_true",
        help="write golden snapshots and generated tables anew instead of comparing them",
    )


@pytest.fixture
def golden(request):
    """Compare a text with a file exactly; ``--accept-golden`` writes the file instead."""

    def check(path, text):
        if request.config.getoption("--accept-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        remedy = "if this is meant, run `pytest --accept-golden` and commit the change"
        assert path.is_file(), f"no snapshot {path.name}: {remedy}"
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs: {remedy}"

    check.accepting = request.config.getoption("--accept-golden")
    return check
