"""Auto-CoT: demonstrations that the model writes itself, one for each cluster of a pool of questions.

The questions are embedded and clustered (k-means, as many clusters as demonstrations).  In each, from the centre outward,
the first question of at most 60 words is taken whose zero-shot chain has at most five steps; question, chain and answer
become a demonstration.

Calls: 1; beforehand 2 for each question that is tried, at least ``count`` questions.  Source: Zhang et al., "Automatic
chain of thought prompting in large language models", ICLR 2023, arXiv 2210.03493.  *Departures*: length is counted in
words, the paper counts tokens; MiniLM-L6 stands for Sentence-BERT; a cluster without a usable chain gives none.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.self_demos import Pool, pool_of, self_written
from cuelight.methods.strategy import Run, StrategyCard, strategy, worked


@strategy(
    StrategyCard(
        name="auto-cot",
        title="Automatic Chain-of-Thought (Auto-CoT) prompting",
        group="reasoning",
        calls="1; beforehand 2 for each question tried",
        paper="Zhang et al., Automatic chain of thought prompting in large language models",
        arxiv="2210.03493",
        year=2022,
        acquired="model-generated",
        turns="multi",
        shown_on="GPT-3",
    )
)
def auto_cot(
    run: Run,
    question: str,
    *,
    pool: Annotated[Pool, Field(description="Questions without answers: a table, a text file or a list.")],
    count: Annotated[int, Field(ge=1, description="Demonstrations, and clusters.")] = 4,
    encoder: Annotated[str, Field(description="Sentence encoder; words for TF-IDF.")] = "minilm-l6",
) -> str | None:
    with run.preparing():
        demos = self_written(run, pool_of(pool), count, encoder)
    return run.parse(run.ask(f"{worked(demos)}Q: {run.asked}\nA:", "reasoning"))
