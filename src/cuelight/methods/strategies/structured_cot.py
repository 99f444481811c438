"""Structured chain of thought: a plan made of sequence, branch and loop only, and then the code by that plan.

The answer is the code.  With ``tests`` (assertions) each of ``samples`` programs is run in the sandbox, and the first that
passes is returned; the trace's confidence is then the share that passes, which is pass@1 (`pass_at_k` for more).

Calls: 1 + samples.  Source: Li et al., "Structured chain-of-thought prompting for code generation", TOSEM 2025, arXiv
2305.06599.  *Departures*: our own example.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from cuelight.lm.answers import code_in
from cuelight.methods.strategy import Run, StrategyCard, strategy
from cuelight.sandbox import Limits, run_python

EXAMPLE = """Requirement: the largest even number of a list, or None
Input: numbers: list
Output: best: int or None
1: best = None
2: for number in numbers:
3:     if number is even:
4:         if best is None or number > best:
5:             best = number
6: return best

"""


@strategy(
    StrategyCard(
        name="structured-cot",
        title="Structured Chain-of-Thought (SCoT) prompting",
        group="code",
        calls="1 + samples",
        paper="Li et al., Structured chain-of-thought prompting for code generation",
        arxiv="2305.06599",
        year=2023,
        acquired="hybrid",
        turns="multi",
        shown_on="ChatGPT, Codex",
    )
)
def structured_cot(
    run: Run,
    question: str,
    *,
    tests: Annotated[str, Field(description="Assertions that the code must pass.")] = "",
    samples: Annotated[int, Field(ge=1, description="Programs that are written from the plan.")] = 1,
    temperature: Annotated[float, Field(ge=0, description="Temperature of several programs.")] = 0.7,
    unprotected: Annotated[bool, Field(description="Run tests where code can not be isolated.")] = False,
) -> str | None:
    plan = run.ask(
        f"Plan with sequence, branch (if) and loop (for, while) only.\n\n{EXAMPLE}Requirement: {question}\nInput:",
        "plan",
        stop=("\nRequirement:",),
    )
    prompt = f"Requirement: {question}\nInput: {plan}\n\nWrite it in Python.\n```python\n"
    texts = run.sample(
        prompt, samples, "code", 0.0 if samples == 1 else temperature, stop=("\nRequirement:",)
    )
    programs = [code_in(text) for text in texts]
    if not tests:
        return next((program for program in programs if program), None)
    passed = []
    for program in programs:
        ran = run_python(f"{program}\n{tests}\n", limits=Limits(seconds=5), unprotected=unprotected)
        run.note("tested", program, error=ran.error)
        passed.append(ran.ok)
    run.trace.confidence = pass_at_k(samples, sum(passed), 1)
    return next((p for p, ok in zip(programs, passed, strict=True) if ok), None)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of ``k`` programs drawn from ``n`` passes when ``c`` of them do: 1 - C(n-c, k) / C(n, k)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)
