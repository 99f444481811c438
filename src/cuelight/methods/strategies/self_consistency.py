"""Self-consistency: several sampled chains of thought, and the answer that most of them come to.

The share of votes is a confidence.  Of answers with equal votes the one with the larger mean log-probability per token,
summed over its samples, wins where the model can score texts (one scoring call for each tied sample); else the first.

Calls: ``samples``, and those of a tie.  Source: Wang et al., "Self-consistency improves chain of thought reasoning in
language models", ICLR 2023, arXiv 2203.11171.  *Departures*: 8 samples by default, the paper draws up to 40.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.lm.answers import normal
from cuelight.methods.strategy import DEMOS, Demos, Run, StrategyCard, demos_of, majority, strategy, worked


@strategy(
    StrategyCard(
        name="self-consistency",
        title="Self-Consistency",
        group="reasoning",
        calls="samples (and one for each sample of a tie)",
        paper="Wang et al., Self-consistency improves chain of thought reasoning in language models",
        arxiv="2203.11171",
        year=2022,
        acquired="manual",
        turns="single",
        shown_on="PaLM 540B",
    )
)
def self_consistency(
    run: Run,
    question: str,
    *,
    samples: Annotated[int, Field(ge=1, description="Chains that are sampled.")] = 8,
    temperature: Annotated[float, Field(ge=0, description="Temperature of the samples.")] = 0.7,
    demos: Annotated[
        Demos, Field(description="Examples with rationales; none for the zero-shot form.")
    ] = DEMOS,
    likelihood: Annotated[
        bool, Field(description="Break a tie by log-probability, where the model can score.")
    ] = True,
) -> str | None:
    found = demos_of(demos)
    prompt = f"{worked(found)}Q: {run.asked}\nA:" + (
        "" if found else f" Let's think step by step. {run.form}"
    )
    texts = run.sample(prompt, samples, "chain", temperature)
    answers = [run.parse(text) for text in texts]
    best, votes = majority(answers)
    if best is None:
        return None
    tied = [answer for answer, count in votes.items() if count == votes[best]]
    if len(tied) > 1 and likelihood and run.lm.can_score:
        likely = dict.fromkeys(tied, 0.0)
        for text, answer in zip(texts, answers, strict=True):
            name = next((t for t in tied if answer is not None and normal(t) == normal(answer)), None)
            if name is not None:
                likely[name] += run.score(prompt, [f" {text}"], "tie")[0] / max(len(text.split()), 1)
        best = max(tied, key=lambda answer: likely[answer])
    run.note("votes", data=votes)
    run.trace.confidence = votes[best] / samples
    return best
