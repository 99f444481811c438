"""Write the page of every method and the table of systems, from cards, docstrings, options and measured results.

Nothing in those pages is written by hand, so none of it can drift from the code: `tests/test_docs.py` builds them
again and compares.

    python docs/build.py            # or: make docs
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from cuelight.methods.base import Method, get_method, method_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"


def results() -> dict[str, list[dict[str, Any]]]:
    """Committed benchmark results by the methods they are about."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "benchmarks").glob("*/results/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for method in record.get("methods", []):
            found.setdefault(method, []).append({"file": path.relative_to(ROOT).as_posix(), **record})
    return found


def tests_of(name: str) -> list[str]:
    """Test files that name the method."""
    pattern = re.compile(rf"[\"']{re.escape(name)}[\"']")
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [f.name for f in files if pattern.search(f.read_text(encoding="utf-8"))]


def options_table(kind: type[Method]) -> list[str]:
    """The method's own options as a Markdown table."""
    rows = [
        f"| `--{name.replace('_', '-')}` | {field.default if field.default is not None else ''} | {field.description} |"
        for name, field in kind.Config.model_fields.items()
    ]
    return (
        ["| option | default | meaning |", "|---|---|---|", *rows]
        if rows
        else ["It has no options of its own."]
    )


def page(name: str, measured: list[dict[str, Any]]) -> str:
    """One method's page."""
    kind = get_method(name)
    card = kind.card
    text = inspect.cleandoc(inspect.getmodule(kind).__doc__ or "").replace("``", "`")
    source = (
        f"{card.paper}, arXiv [{card.arxiv}](https://arxiv.org/abs/{card.arxiv})"
        if card.arxiv
        else "none: common practice"
    )
    code = Path(inspect.getfile(kind)).resolve().relative_to(ROOT).as_posix()
    lines = [
        f"# {card.title}",
        "",
        text,
        "",
        "| | |",
        "|---|---|",
        f"| paper | {source} |",
        f"| learns | {card.learns} |",
        f"| costs | {card.cost} |",
        f"| backbones | {', '.join(card.kinds)} |",
        f"| tasks | {', '.join(card.tasks)} |",
        f"| PEFT | {'exports to and imports from ' + card.peft if card.peft else 'not known there'} |",
        f"| code | [{code}](../../{code}) |",
        "",
        "## Use",
        "",
        "```shell",
        f"cuelight tune {name} --backbone smollm2-135m --data film-reviews --shots 16",
        "```",
        "",
        "```python",
        f'run = cuelight.tune("{name}", backbone="smollm2-135m", data="film-reviews", shots=16)',
        'run.prompt.save("mine")',
        'cuelight.load("mine").predict(["I laughed, I cried."])',
        "```",
        "",
        "## Options",
        "",
        *options_table(kind),
        "",
        "`cuelight tune " + name + " --help` lists those of training, task and data too.",
        "",
        "## Measured",
        "",
    ]
    for record in measured:
        lines += [
            f"- {record['summary']} (`{record['command']}`, {record['date']}, [{record['file']}](../../{record['file']}))"
        ]
    if not measured:
        lines.append("Nothing beyond the tests yet.")
    return "\n".join(lines) + "\n"


def systems(found: dict[str, list[dict[str, Any]]]) -> str:
    """The table of systems."""
    lines = [
        "# Systems",
        "",
        "Every method of this installation: its paper, the command that runs it, the tests that verify it, and what was",
        "measured, as it came out. Made by `make docs`; the pages hold the details.",
        "",
        "| system | paper | command | verified in | measured |",
        "|---|---|---|---|---|",
    ]
    for name in method_names():
        card = get_method(name).card
        paper = (
            f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv}) ({card.year})" if card.arxiv else "baseline"
        )
        measured = "<br>".join(record["summary"] for record in found.get(name, [])) or "tests only"
        verified = ", ".join(f"`{file}`" for file in tests_of(name))
        lines.append(
            f"| [{card.title}](methods/{name}.md) | {paper} | `cuelight tune {name}` | {verified} | {measured} |"
        )
    return "\n".join(lines) + "\n"


def build() -> dict[Path, str]:
    """All generated pages and their text."""
    found = results()
    pages = {PAGES / f"{name}.md": page(name, found.get(name, [])) for name in method_names()}
    return {**pages, ROOT / "docs" / "systems.md": systems(found)}


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    made = build()
    for stale in set(PAGES.glob("*.md")) - set(made):
        stale.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(made)} pages written")


if __name__ == "__main__":
    main()
