"""Program of Thoughts: the model writes a Python program instead of a chain of words; the program is run for the answer.

Examples turn text into code that assigns ``ans``.  The code runs in the sandbox (`cuelight.sandbox`): no network, no files
but an empty folder, limits on time and memory.  If it fails, the model is shown the error once and may repair it; if that
fails too, a chain of thought answers.

Calls: 1; one more for a repair, one more for the fallback.  Source: Chen et al., "Program of thoughts prompting: disentangling
computation from reasoning for numerical reasoning tasks", TMLR 2023, arXiv 2211.12588.  *Departures*: our own three examples;
the repair and the fallback may be switched off; the program may use the standard library, not SymPy.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.lm.answers import code_in
from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy
from cuelight.sandbox import Limits, run_python

EXAMPLES = (
    Demo(
        "A baker has 3 trays with 8 rolls each and sells 10 rolls. How many rolls are left?",
        "rolls = 3 * 8\nsold = 10\nans = rolls - sold",
        "14",
    ),
    Demo(
        "Ida is 6 years older than Tom. Tom is 9. How old are they together?",
        "tom = 9\nida = tom + 6\nans = ida + tom",
        "24",
    ),
    Demo(
        "A film of 120 minutes is shown 4 times a day. How many hours is that in 5 days?",
        "hours = 120 / 60\na_day = 4 * hours\nans = 5 * a_day",
        "40",
    ),
)


@strategy(
    StrategyCard(
        name="program-of-thoughts",
        title="Program of Thoughts (PoT) prompting",
        group="code",
        calls="1 (2 with a repair, 3 with the fallback)",
        paper="Chen et al., Program of thoughts prompting: disentangling computation from reasoning",
        arxiv="2211.12588",
        year=2022,
        acquired="manual",
        turns="single",
    )
)
def program_of_thoughts(
    run: Run,
    question: str,
    *,
    demos: Annotated[
        Demos, Field(description="Examples whose rationales are programs that assign ans.")
    ] = EXAMPLES,
    repair: Annotated[bool, Field(description="Show the model the error of its program once.")] = True,
    fallback: Annotated[bool, Field(description="Answer by chain of thought when the program fails.")] = True,
    seconds: Annotated[float, Field(gt=0, description="Most seconds the program may run.")] = 5.0,
    unprotected: Annotated[bool, Field(description="Run the program where it can not be isolated.")] = False,
) -> str | None:
    shown = "".join(
        f"Q: {d.question}\n# Python, the result in ans\n{d.rationale}\n\n" for d in demos_of(demos)
    )
    prompt = f"Answer with Python code that assigns the result to ans.\n\n{shown}Q: {run.asked}\n# Python, the result in ans\n"
    stop = ("\nQ:", "\n# Python")
    text = run.ask(prompt, "program", stop=stop)
    for last in (not repair, True):
        program = code_in(text)
        ran = run_python(program, limits=Limits(seconds=seconds), unprotected=unprotected)
        error = ran.error or ("" if ran.value is not None else "ans was not assigned")
        run.note("executed", program, value=ran.value, error=error, stdout=ran.stdout)
        if not error:
            return run.parse(f"The answer is {ran.value}")
        if last:
            break
        text = run.ask(
            f"{prompt}{program}\n# This program fails: {error}\n# The repaired program\n", "repair", stop=stop
        )
    return run.use("chain-of-thought").answer if fallback else None
