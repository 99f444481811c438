"""Rephrase and Respond: the question is put in clearer words before it is answered.

In one step the model rephrases, expands and answers in one text.  In two steps a rephraser (``rephraser`` in Python: another
model) writes the clearer question, and the responder sees both it and the original.

Calls: 1, or 2.  Source: Deng et al., "Rephrase and respond: let large language models ask better questions for themselves",
2023, arXiv 2311.04205.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="rephrase-and-respond",
        title="Rephrase and Respond (RaR) prompting",
        group="intent",
        calls="1 (2 in two steps)",
        paper="Deng et al., Rephrase and respond: let large language models ask better questions for themselves",
        arxiv="2311.04205",
        year=2023,
        acquired="manual",
        turns="single",
        shown_on="GPT-4",
    )
)
def rephrase_and_respond(
    run: Run,
    question: str,
    *,
    two_steps: Annotated[bool, Field(description="Rephrase in a call of its own.")] = False,
    rephraser: Annotated[Any, Field(description="Python: another model that rephrases (two steps).")] = None,
) -> str | None:
    if not two_steps and rephraser is None:
        return run.parse(
            run.ask(
                f"Q: {run.asked}\nRephrase and expand the question, and then answer it. {run.form}\nA:",
                "answer",
            )
        )
    with run.speaking(rephraser):
        clearer = run.ask(
            f'"{run.asked}"\nRephrase and expand this question so that it can be answered better. Keep all that it says.\n'
            "Rephrased question:",
            "rephrase",
        )
    return run.parse(
        run.ask(f"Original question: {run.asked}\nRephrased question: {clearer}\n{run.form}\nA:", "answer")
    )
