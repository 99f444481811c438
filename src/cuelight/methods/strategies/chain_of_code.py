"""Chain of Code: a program that mixes real statements with functions only a reader understands; the model simulates those.

The model writes code that assigns ``ans`` and may call functions that do not exist (``is_fruit(x)``).  The program is run
statement by statement in the sandbox.  Where a statement fails, the model is shown the state and says what the state is
afterwards (as a dictionary), or, for the condition of an ``if`` or the items of a loop, what its value is; and the
program goes on.

Calls: 1 and one for each statement that is simulated.  Source: Li et al., "Chain of code: reasoning with a language
model-augmented code emulator", ICML 2024, arXiv 2312.04474.  *Ours*: the sandbox runs one-shot, so after each simulated
statement the program starts again with the answers so far, which gives the same result because nothing in it is random.
"""

from __future__ import annotations

import ast
import json
from typing import Annotated, Any

from pydantic import Field

from cuelight.lm.answers import code_in
from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy
from cuelight.sandbox import Limits, run_python, stepper_source

EXAMPLES = (
    Demo(
        "I have an apple, a chair, two pears and a lamp. How many fruits do I have?",
        'things = {"apple": 1, "chair": 1, "pear": 2, "lamp": 1}\nans = 0\nfor thing, count in things.items():\n'
        "    if is_fruit(thing):\n        ans += count",
        "3",
    ),
    Demo(
        "It is Monday. Tom came 3 days ago. On which day was that?",
        'today = "Monday"\nans = day_before(today, 3)',
        "Friday",
    ),
)


@strategy(
    StrategyCard(
        name="chain-of-code",
        title="Chain-of-Code (CoC) prompting",
        group="code",
        calls="1 and one for each simulated statement",
        paper="Li et al., Chain of code: reasoning with a language model-augmented code emulator",
        arxiv="2312.04474",
        year=2023,
        acquired="manual",
        turns="single",
    )
)
def chain_of_code(
    run: Run,
    question: str,
    *,
    demos: Annotated[
        Demos, Field(description="Examples whose rationales are programs that assign ans.")
    ] = EXAMPLES,
    simulated: Annotated[int, Field(ge=0, description="Most statements that the model simulates.")] = 10,
    seconds: Annotated[float, Field(gt=0, description="Most seconds the program may run.")] = 5.0,
    unprotected: Annotated[bool, Field(description="Run the program where it can not be isolated.")] = False,
) -> str | None:
    shown = "".join(
        f"Q: {d.question}\n# Python, the result in ans\n{d.rationale}\n\n" for d in demos_of(demos)
    )
    head = "Answer with Python code that assigns the result to ans. It may call functions that only a reader understands."
    prompt = f"{head}\n\n{shown}Q: {run.asked}\n# Python, the result in ans\n"
    program = code_in(run.ask(prompt, "program", stop=("\nQ:", "\n# Python")))
    answers: list[Any] = []
    while True:
        request = json.dumps([program, answers])
        driver = f"{stepper_source()}\nreport = step({request!r})"
        ran = run_python(driver, value="report", limits=Limits(seconds=seconds), unprotected=unprotected)
        report = ran.value or {}
        if ran.error or report.get("done"):
            error = ran.error or report.get("error", "")
            run.note("executed", program, state=report.get("state", {}), error=error)
            value = report.get("state", {}).get("ans")
            return None if error or value is None else run.parse(f"The answer is {value}")
        if len(answers) == simulated:
            run.note("executed", program, error=f"more than {simulated} statements to simulate")
            return None
        answers.append(_simulated(run, program, report))


def _simulated(run: Run, program: str, report: dict[str, Any]) -> Any:
    """What the model says a statement does: new variables, or the value of an expression."""
    kind = "new variables as a dictionary" if report["kind"] == "statement" else "value"
    said = run.ask(
        f"Q: {run.asked}\nProgram:\n{program}\n\nState: {report['state']}\nLine: {report['line']}\n"
        f"Python can not run this line. What is the {kind}, as a Python literal?\nAnswer:",
        "simulate",
        stop=("\n\n", "\nQ:"),
        max_tokens=96,
    )
    return _literal(said, dictionary=report["kind"] == "statement")


def _literal(text: str, *, dictionary: bool) -> Any:
    line = text.strip().strip("`").split("\n")[0].strip()
    if dictionary and "{" in text:
        line = text[text.index("{") : text.rindex("}") + 1] if "}" in text else "{}"
    try:
        found = ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = {"yes": True, "true": True, "no": False, "false": False}.get(line.lower().rstrip("."), line)
    return (found if isinstance(found, dict) else {}) if dictionary else found
