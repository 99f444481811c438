"""Write the pages of the methods and of the strategies, and the table of systems, from cards, docstrings, options, results.

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
from cuelight.methods.strategy import GROUPS, Common, Strategy, all_strategies

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"
BACKBONES = {
    "causal": "smollm2-135m",
    "seq2seq": "flan-t5-small",
    "masked": "minilm-mlm",
    "text-encoder": "minilm-l6",
    "vision-language": "clip-b16-minilm",
    "vision-encoder": "dinov2-small",
}
"""A built-in backbone of each kind, for the examples."""


def results(key: str = "methods") -> dict[str, list[dict[str, Any]]]:
    """Committed benchmark results by the methods, or ``strategies``, they are about."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((ROOT / "benchmarks").glob("*/results/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for method in record.get(key, []):
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
    backbone = next(BACKBONES[k] for k in BACKBONES if k in card.kinds)
    data, asked = (
        ("pictures/", "cat.jpg") if card.reads == "image" else ("film-reviews", "I laughed, I cried.")
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
        f"cuelight tune {name} --backbone {backbone} --data {data} --shots 16",
        "```",
        "",
        "```python",
        f'run = cuelight.tune("{name}", backbone="{backbone}", data="{data}", shots=16)',
        'run.prompt.save("mine")',
        f'cuelight.load("mine").predict(["{asked}"])',
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
    measured = "<br>".join(record["summary"] for record in found.get("promptor", [])) or "tests only"
    lines.append(
        "| [Promptor: a tested prompt out of a conversation](promptor.md) | "
        "[2310.08101](https://arxiv.org/abs/2310.08101) (2023) | `cuelight promptor` | "
        f"`test_promptor.py`, `test_studio.py` | {measured} |"
    )
    lines += ["", "Inference techniques, which learn nothing ([their page](strategies.md)):", ""]
    lines += ["| technique | paper | command | verified in | measured |", "|---|---|---|---|---|"]
    measured_strategies = results("strategies")
    for found_ in all_strategies():
        name, card_ = found_.card.name, found_.card
        paper = (
            f"[{card_.arxiv}](https://arxiv.org/abs/{card_.arxiv}) ({card_.year})"
            if card_.arxiv
            else str(card_.year)
        )
        files = {record["file"] for record in measured_strategies.get(name, [])}
        measured = ", ".join(f"[{Path(file).stem}](../{file})" for file in sorted(files)) or "tests only"
        lines.append(
            f"| [{card_.title}](strategies.md#{name}) | {paper} | `cuelight solve {name}` | `test_strategies.py` | {measured} |"
        )
    return "\n".join(lines) + "\n"


def strategy_section(found: Strategy, measured: list[dict[str, Any]]) -> list[str]:
    """A strategy's part of the page."""
    card = found.card
    paper = f"{card.paper}, {card.year}"
    paper += f", arXiv [{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else ""
    survey = ", ".join(filter(None, [card.acquired, card.turns and f"{card.turns} turn", card.shown_on]))
    kinds = {
        "search": "searches for an instruction first",
        "training": "the cited technique trains a model; what runs here is its inference counterpart",
        "data": "the technique generates training data; what runs here is its data recipe",
    }
    rows = [
        f"| {typed(name, field)} | {default_of(field)} | {field.description} |"
        for name, field in found.Options.model_fields.items()
        if name not in Common.model_fields
    ]
    return [
        f'<a id="{card.name}"></a>',
        "",
        f"### {card.title}",
        "",
        inspect.cleandoc(found.__doc__ or "").replace("``", "`"),
        "",
        f"- `cuelight solve {card.name} QUESTION --lm SPEC`, `cuelight.strategies.{card.name.replace('-', '_')}(lm, question)`",
        f"- calls: {card.calls}",
        f"- paper: {paper}",
        *([f"- in the survey's table: {survey}"] if survey else []),
        *([f"- {kinds[card.kind]}"] if card.kind in kinds else []),
        *(f"- measured: [{Path(r['file']).stem}](../{r['file']}), {r['date']}" for r in measured),
        "",
        *(["| option | default | meaning |", "|---|---|---|", *rows, ""] if rows else []),
    ]


def typed(name: str, field: Any) -> str:
    """An option as it is typed; those of Python alone by their name."""
    python = str(field.description).startswith("Python:")
    return f"`{name}`" if python else f"`--{name.replace('_', '-')}`"


def default_of(field: Any) -> str:
    """An option's default as a page shows it; long texts and examples are only named."""
    if field.is_required():
        return "(needed)"
    value = field.default
    if value is None or value == "" or value == ():
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace("|", "\\|") if len(text) <= 60 and "\n" not in text else "(built in)"


def strategies_page() -> str:
    """The page of the strategies: how they are used, then each by application area."""
    measured = results("strategies")
    lines = [
        "# Inference techniques",
        "",
        "The 41 techniques of a survey (Sahoo et al., *A systematic survey of prompt engineering in large language models*,",
        "arXiv [2402.07927](https://arxiv.org/abs/2402.07927)), by its application areas. Nothing learns: each takes a",
        "language model and a question and gives a trace with every call, every thought, what it cost, and the answer.",
        "",
        "```shell",
        "cuelight strategies                                   # all, by area; 'cuelight strategies NAME' explains one",
        'cuelight solve self-consistency "What is 17 * 3?" --lm smollm2-135m --answer number --trace trace.json',
        "cuelight compare-strategies zero-shot,chain-of-thought,program-of-thoughts --lm smollm2-135m --data questions.csv",
        "```",
        "",
        "```python",
        "from cuelight import lm, strategies",
        "",
        'trace = strategies.self_consistency(lm.connect("smollm2-135m"), "What is 17 * 3?", answer="number")',
        "trace.answer, trace.confidence, trace.calls, trace.usage.cost",
        'trace.save("trace.json")',
        "```",
        "",
        "Code that a model writes runs in a process of its own without network, in an empty folder, with limits on time,",
        "memory and output (`cuelight.sandbox`); where that can not be had it is refused, unless `--unprotected` allows it.",
        "",
        "Options of all:",
        "",
        "| option | default | meaning |",
        "|---|---|---|",
        *(
            f"| `--{name.replace('_', '-')}` | {default_of(field)} | {field.description} |"
            for name, field in Common.model_fields.items()
        ),
        "",
    ]
    summaries = {r["file"]: r for records in measured.values() for r in records}
    if summaries:
        lines += ["## Measured", ""]
        lines += [
            f"- {r['summary']} (`{r['command']}`, {r['date']}, [{f}](../{f}))"
            for f, r in sorted(summaries.items())
        ]
        lines += [""]
    for group, title in GROUPS.items():
        lines += [f"## {title}", ""]
        for found in all_strategies():
            if found.card.group == group:
                lines += strategy_section(found, measured.get(found.card.name, []))
    return "\n".join(lines).rstrip() + "\n"


def build() -> dict[Path, str]:
    """All generated pages and their text."""
    found = results()
    pages = {PAGES / f"{name}.md": page(name, found.get(name, [])) for name in method_names()}
    return {
        **pages,
        ROOT / "docs" / "systems.md": systems(found),
        ROOT / "docs" / "strategies.md": strategies_page(),
    }


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
