"""CD-CoT: noisy rationales of the examples are rewritten by contrast with one clean example before they are used.

Every noisy example's rationale is rephrased ``rephrasings`` times beside the clean example; rephrasings that still come to
the example's answer are kept.  ``sets`` sets are drawn of them, each is asked ``votes`` times, and the answers vote.

Calls: sets * votes; beforehand rephrasings for each noisy example.  Source: Zhou et al., "Can language models perform robust
reasoning in chain-of-thought prompting with noisy rationales?", NeurIPS 2024, arXiv 2410.23856.  *Departures*: the
sizes are our own; an example none of whose rephrasings keeps the answer is left out.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from cuelight.lm.answers import same
from cuelight.methods.strategy import (
    DEMOS,
    Demo,
    Demos,
    Run,
    StrategyCard,
    demos_of,
    majority,
    strategy,
    worked,
)


@strategy(
    StrategyCard(
        name="cd-cot",
        title="Contrastive Denoising with noisy Chain-of-Thought (CD-CoT)",
        group="reasoning",
        calls="sets * votes; beforehand rephrasings for each demo",
        paper="Zhou et al., Can language models perform robust reasoning in chain-of-thought prompting with noisy rationales?",
        arxiv="2410.23856",
        year=2024,
    )
)
def cd_cot(
    run: Run,
    question: str,
    *,
    demos: Annotated[Demos, Field(description="Examples whose rationales may be noisy.")],
    clean: Annotated[Demos, Field(description="Clean examples; the first is used.")] = DEMOS[:1],
    rephrasings: Annotated[int, Field(ge=1, description="Rephrasings of a rationale.")] = 3,
    sets: Annotated[int, Field(ge=1, description="Sets of examples.")] = 2,
    votes: Annotated[int, Field(ge=1, description="Answers with each set.")] = 2,
    temperature: Annotated[float, Field(ge=0, description="Temperature of rephrasings and answers.")] = 0.7,
) -> str | None:
    guide = demos_of(clean)[0]
    kept: list[list[Demo]] = []
    with run.preparing():
        for demo in demos_of(demos):
            prompt = (
                f"{worked([guide])}The explanation above is clean. The next one may hold irrelevant or wrong steps. "
                f"Rewrite it without them.\n\nQ: {demo.question}\nA: {demo.rationale} The answer is {demo.answer}.\n"
                "Rewritten A:"
            )
            texts = run.sample(prompt, rephrasings, "rephrase", temperature)
            good = [
                _split(text, demo) for text in texts if same(run.parse(text), demo.answer, run.common.answer)
            ]
            run.note("kept", data=len(good), of=rephrasings, question=demo.question)
            if good:
                kept.append(good)
    draw = random.Random(run.common.seed)
    answers: list[str | None] = []
    for _ in range(sets):
        chosen = [guide, *(draw.choice(good) for good in kept)]
        prompt = f"{worked(chosen)}Q: {run.asked}\nA:"
        answers += [run.parse(text) for text in run.sample(prompt, votes, "reasoning", temperature)]
    best, counted = majority(answers)
    run.note("votes", data=counted)
    run.trace.confidence = counted[best] / len(answers) if best else None
    return best


def _split(text: str, demo: Demo) -> Demo:
    """The rephrased rationale without its closing answer."""
    return Demo(demo.question, " ".join(text.split("The answer is")[0].split()), demo.answer)
