"""Layer-of-Thoughts: candidates pass through a hierarchy of filters, from plain conditions to a last confirmation.

The first layer is keywords that the model writes for the question: documents that hold enough of them go on.  The second is
conditions in words, also written by the model, which it checks on each document.  The last asks of each survivor whether
it answers the question.  A layer lets a document pass when all, any, or at least some number of its conditions hold.  The
ranked survivors are the answer: their titles, best first.

Calls: 2, and for each document that reaches it 1 for each semantic condition and 1 for the confirmation.  Source:
Fungwacharakorn et al., "Layer-of-thoughts prompting (LoT): leveraging LLM-based retrieval with constraint hierarchies",
2024, arXiv 2410.12153.  *Departures*: the batching of documents is left out, and
survivors are ranked by how many conditions they met.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from cuelight.lm.documents import Documents, Passage
from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="layer-of-thoughts",
        title="Layer-of-Thoughts (LoT) prompting",
        group="reasoning",
        calls="2, and conditions + 1 for each document that gets so far",
        paper="Fungwacharakorn et al., Layer-of-thoughts prompting: leveraging LLM-based retrieval with constraint hierarchies",
        arxiv="2410.12153",
        year=2024,
    )
)
def layer_of_thoughts(
    run: Run,
    question: str,
    *,
    documents: Annotated[Any, Field(description="Candidates: a folder, a file, or a list of texts.")],
    keywords: Annotated[int, Field(ge=1, description="Keywords of the first layer.")] = 5,
    conditions: Annotated[int, Field(ge=1, description="Conditions of the second layer.")] = 2,
    rule: Annotated[
        str,
        Field(pattern=r"^(all|any|\d+)$", description="Conditions that must hold: all, any, or how many."),
    ] = "any",
) -> str | None:
    candidates = Documents.read(documents).passages
    words = _items(
        run.ask(
            f"Q: {question}\nWrite {keywords} keywords of texts that answer this, separated by commas:",
            "keywords",
        )
    )
    words = words[:keywords]
    passed: list[tuple[int, Passage]] = []
    for passage in candidates:
        met = sum(word.lower() in f"{passage.title} {passage.text}".lower() for word in words)
        if _passes(met, len(words), rule):
            passed.append((met, passage))
    run.note("layer 1", data=[p.title for _, p in passed], keywords=words)
    asked = run.ask(
        f"Q: {question}\nWrite {conditions} conditions that a text must meet to answer this, one a line:",
        "conditions",
    )
    rules = [line.strip(" -*0123456789.)") for line in asked.splitlines() if line.strip()][:conditions]
    second = []
    for met, passage in passed:
        held = sum(
            _yes(run, passage, f"Does the text meet this condition: {rule_}", "condition") for rule_ in rules
        )
        if _passes(held, len(rules), rule):
            second.append((met + held, passage))
    run.note("layer 2", data=[p.title for _, p in second], conditions=rules)
    last = [
        entry
        for entry in second
        if _yes(run, entry[1], f"Does the text answer this question: {question}", "confirm")
    ]
    run.note("layer 3", data=[p.title for _, p in last])
    ranked = sorted(last, key=lambda entry: -entry[0])
    return "; ".join(dict.fromkeys(p.title for _, p in ranked)) or None


def _items(text: str) -> list[str]:
    return [word.strip(" .-*\"'") for word in re.split(r"[,;\n]", text) if word.strip(" .-*\"'")]


def _passes(met: int, of: int, rule: str) -> bool:
    return met >= (of if rule == "all" else 1 if rule == "any" else min(int(rule), of)) if of else True


def _yes(run: Run, passage: Passage, asked: str, role: str) -> bool:
    said = run.ask(f"Text ({passage.title}): {passage.text}\n{asked}\nAnswer yes or no:", role, max_tokens=8)
    return re.search(r"\byes\b", said.lower()) is not None
