"""Logic-of-Thought: logical relations are read off the text, closed under logic by a program, and told back to the model.

Call 1 lists propositions and implications between them.  The program adds what follows by contraposition, double negation
and transitivity.  Call 2 puts the new implications into sentences, which are added to the question; any strategy answers
(``answer_with``).

Calls: 2 and those of the answer.  Source: Liu et al., "Logic-of-thought: injecting logic into contexts for full reasoning
in large language models", NAACL 2025, arXiv 2409.17539.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy

Rule = tuple[str, str]
_ARROW = re.compile(r"([~¬!]*(?:not\s+)?[A-Z]\w*)\s*(?:->|→|=>)\s*([~¬!]*(?:not\s+)?[A-Z]\w*)", re.IGNORECASE)


@strategy(
    StrategyCard(
        name="logic-of-thought",
        title="Logic-of-Thought (LoT) prompting",
        group="reasoning",
        calls="2 and those of answer_with",
        paper="Liu et al., Logic-of-thought: injecting logic into contexts for full reasoning in large language models",
        arxiv="2409.17539",
        year=2024,
        acquired="model-generated",
        turns="multi",
        shown_on="GPT-3.5, GPT-4",
    )
)
def logic_of_thought(
    run: Run,
    question: str,
    *,
    context: Annotated[str, Field(description="Text that comes with the question.")] = "",
    answer_with: Annotated[
        str, Field(description="The strategy that answers from the enriched text.")
    ] = "chain-of-thought",
) -> str | None:
    given = f"{context}\n{run.asked}".strip()
    text = run.ask(
        "Read the text. Name its propositions with capital letters, one a line (A: it rains), then write every "
        "'if ... then ...' as an arrow, one a line (A -> B), with ~A for 'not A'.\n\n"
        f"Text: {given}\n\nPropositions and arrows:\n",
        "extract",
    )
    rules = [(_literal(a), _literal(b)) for a, b in _ARROW.findall(text)]
    new = sorted(closure(rules) - closure(rules, chains=False, turned=False))
    run.note("closure", data=[f"{a} -> {b}" for a, b in new], given=[f"{a} -> {b}" for a, b in rules])
    told = ""
    if new:
        arrows = "\n".join(f"{a} -> {b}" for a, b in new)
        told = run.ask(
            f"{text}\n\nPut each of these arrows into a sentence, one a line:\n{arrows}\n", "verbalise"
        )
    asked = f"{given}\n{told}".strip() if told else given
    return run.use(answer_with, asked).answer


def closure(rules: Iterable[Rule], *, chains: bool = True, turned: bool = True) -> set[Rule]:
    """All implications that follow: by contraposition (``turned``) and transitivity (``chains``), double negation gone.

    Trivial ones (A -> A) are left out.  A literal is a name, with ``~`` before it when negated.
    """
    found = {(_literal(a), _literal(b)) for a, b in rules}
    while True:
        more = set(found)
        if turned:
            more |= {(_negated(b), _negated(a)) for a, b in found}
        if chains:
            more |= {(a, d) for a, b in more for c, d in more if b == c}
        more = {(a, b) for a, b in more if a != b}
        if more == found:
            return found
        found = more


def _literal(text: str) -> str:
    """``~~A``, ``not not A`` and ``A`` are one literal."""
    signs = len(re.findall(r"[~¬!]|\bnot\b", text, re.IGNORECASE))
    name = re.sub(r"[~¬!\s]|\bnot\b", "", text, flags=re.IGNORECASE)
    return ("~" if signs % 2 else "") + name


def _negated(literal: str) -> str:
    return literal[1:] if literal.startswith("~") else f"~{literal}"
