"""The generated pages say what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cuelight.methods.base import get_method, method_names

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
assert spec and spec.loader
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


def test_pages_are_up_to_date() -> None:
    for path, text in docs.build().items():
        assert path.exists(), f"{path.name} is missing; run make docs"
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run make docs"


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_is(name: str) -> None:
    card = get_method(name).card
    assert card.title and card.learns and card.cost and card.family and card.modality
    for field, info in get_method(name).Config.model_fields.items():
        assert info.description, f"{name}.{field} has no description"


def test_every_measured_result_names_its_command_and_date() -> None:
    assert {"prompt-tuning", "dept"} <= docs.results().keys()
    for records in docs.results().values():
        for record in records:
            assert record["command"].startswith("python -m benchmarks.")
            assert record["date"] and record["versions"]["torch"] and record["summary"]
