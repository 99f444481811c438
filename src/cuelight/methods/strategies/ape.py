"""APE (automatic prompt engineer): the model guesses the instruction behind some examples; the best guess is used.

``candidates`` instructions are sampled from a few example pairs and freed of duplicates.  They are scored on the other
examples, by accuracy or by the log-likelihood of the right answers, in halving rounds: each round scores what is left on
more examples and drops the worse half.  With ``resample`` rounds, paraphrases of the best join and are scored too.

Calls: 1; beforehand candidates, and one for each candidate and example scored.  Source: Zhou et al., "Large language models
are human-level prompt engineers", ICLR 2023, arXiv 2211.01910.  *Departures*: successive halving stands for the paper's
upper-confidence-bound allocation; sizes are smaller (the paper: 50 candidates).  The survey describes it as reinforcement
learning; the original is sampling, scoring and resampling.
"""

from __future__ import annotations

import random
from typing import Annotated, Literal

from pydantic import Field

from cuelight.errors import DataError
from cuelight.lm.answers import same
from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy


@strategy(
    StrategyCard(
        name="ape",
        title="Automatic Prompt Engineer (APE)",
        group="optimisation",
        calls="1; beforehand candidates + one for each candidate and example scored",
        paper="Zhou et al., Large language models are human-level prompt engineers",
        arxiv="2211.01910",
        year=2022,
        acquired="model-generated",
        turns="single",
        kind="search",
    )
)
def ape(
    run: Run,
    question: str,
    *,
    examples: Annotated[Demos, Field(description="Questions with right answers: a table or a list.")],
    candidates: Annotated[int, Field(ge=1, description="Instructions that are sampled.")] = 8,
    shown: Annotated[int, Field(ge=1, description="Examples that the instruction is guessed from.")] = 5,
    scoring: Annotated[
        Literal["accuracy", "likelihood"], Field(description="What the score is.")
    ] = "accuracy",
    resample: Annotated[int, Field(ge=0, description="Rounds of paraphrases of the best.")] = 0,
    temperature: Annotated[float, Field(gt=0, description="Temperature of the instructions.")] = 0.9,
) -> str | None:
    rows = list(demos_of(examples))
    if len(rows) < 2:
        raise DataError("examples: APE needs two or more, to guess from some and to score on others")
    random.Random(run.common.seed).shuffle(rows)
    source, held = rows[: min(shown, len(rows) - 1)], rows[min(shown, len(rows) - 1) :]
    with run.preparing():
        pairs = "\n".join(f"Input: {d.question}\nOutput: {d.answer}" for d in source)
        prompt = f"A friend was given an instruction and wrote these outputs by it.\n\n{pairs}\n\nThe instruction was:"
        proposed = run.sample(prompt, candidates, "propose", temperature, max_tokens=64)
        pool = _unique(proposed)
        best, score = _halved(run, pool, held, scoring)
        for _ in range(resample):
            prompt = f"Write this instruction in other words, with the same meaning.\nInstruction: {best}\nIn other words:"
            pool = _unique(
                [best, *run.sample(prompt, max(candidates // 2, 1), "paraphrase", temperature, max_tokens=64)]
            )
            best, score = _halved(run, pool, held, scoring)
        run.note("instruction", best, score=score)
    return run.parse(run.ask(f"{best}\n\nInput: {run.asked}\nOutput:", "answer", stop=("\nInput:",)))


def _unique(texts: list[str]) -> list[str]:
    lines = [" ".join(text.strip().strip('"').split("\n")[0].split()) for text in texts]
    return list({line.lower(): line for line in reversed(lines) if line}.values())[::-1] or [
        "Answer the question."
    ]


def _halved(run: Run, pool: list[str], held: list[Demo], scoring: str) -> tuple[str, float]:
    """The best instruction and its mean score, scoring the better half on twice the examples in each round."""
    totals = dict.fromkeys(pool, 0.0)
    used, left = 0, list(pool)
    size = max(len(held) // (2 ** max((len(pool) - 1).bit_length(), 0)), 1)
    while used < len(held):
        part = held[used : used + size]
        for instruction in left:
            totals[instruction] += _score(run, instruction, part, scoring)
        used, size = used + len(part), size * 2
        if len(left) == 1:
            break
        left = sorted(left, key=lambda text: -totals[text])[: max(len(left) // 2, 1)]
    best = max(left, key=lambda text: totals[text])
    return best, totals[best] / max(used, 1)


def _score(run: Run, instruction: str, rows: list[Demo], scoring: str) -> float:
    prompts = [f"{instruction}\n\nInput: {d.question}\nOutput:" for d in rows]
    if scoring == "likelihood":
        return sum(run.score(p, [f" {d.answer}"], "score")[0] for p, d in zip(prompts, rows, strict=True))
    texts = run.ask_all(prompts, "score", stop=("\nInput:",), max_tokens=min(run.common.max_tokens, 128))
    return sum(same(run.parse(t), d.answer, run.common.answer) for t, d in zip(texts, rows, strict=True))
