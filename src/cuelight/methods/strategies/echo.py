"""ECHO (self-harmonised chain of thought): self-written demonstrations that are made like each other.

It starts as Auto-CoT.  Then, for some rounds, one demonstration after the other in random order is written anew with all
others before it as examples, so that their ways of reasoning grow together; the united set is used.

Calls: 1; beforehand 2 for each question tried, and 2 * rounds * demonstrations.  Source: Jin and Lu, "Self-harmonized
chain of thought", NAACL 2025, arXiv 2409.04057.  *Departures*: a round rewrites every demonstration once;
rewriting one at random a round is the other reading.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from cuelight.methods.self_demos import Pool, pool_of, self_written, zero_shot_chain
from cuelight.methods.strategy import Run, StrategyCard, strategy, worked


@strategy(
    StrategyCard(
        name="echo",
        title="Self-Harmonized Chain-of-Thought (ECHO) prompting",
        group="reasoning",
        calls="1; beforehand 2 for each question tried and 2 * rounds * count",
        paper="Jin and Lu, Self-harmonized chain of thought",
        arxiv="2409.04057",
        year=2024,
        acquired="hybrid",
        turns="multi",
        shown_on="GPT-3.5",
    )
)
def echo(
    run: Run,
    question: str,
    *,
    pool: Annotated[Pool, Field(description="Questions without answers: a table, a text file or a list.")],
    count: Annotated[int, Field(ge=1, description="Demonstrations, and clusters.")] = 4,
    rounds: Annotated[int, Field(ge=0, description="How often every demonstration is written anew.")] = 2,
    encoder: Annotated[str, Field(description="Sentence encoder; words for TF-IDF.")] = "minilm-l6",
) -> str | None:
    order = random.Random(run.common.seed)
    with run.preparing():
        demos = self_written(run, pool_of(pool), count, encoder)
        for number in range(rounds):
            for k in order.sample(range(len(demos)), len(demos)):
                others = worked([d for j, d in enumerate(demos) if j != k])
                anew = zero_shot_chain(run, demos[k].question, before=others, role=f"round {number + 1}")
                demos[k] = anew if anew.answer else demos[k]
    return run.parse(run.ask(f"{worked(demos)}Q: {run.asked}\nA:", "reasoning"))
