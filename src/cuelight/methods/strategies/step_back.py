"""Step-Back prompting: first a more general question, or the principle behind it, then the question itself.

Calls: 2, or 3: the step-back question, its answer, and the answer (``apart``); in 2 calls the first gives question and answer
together.  With documents, passages for the step-back question stand before the last call.  Source: Zheng et al., "Take a
step back: evoking reasoning via abstraction in large language models", ICLR 2024, arXiv 2310.06117.  *Departures*: our
own examples.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from cuelight.lm.documents import Documents
from cuelight.methods.strategy import Demo, Demos, Run, StrategyCard, demos_of, strategy

EXAMPLES = (
    Demo(
        "Which school did Ada Roth attend between August and November 1954?",
        "",
        "What is the history of Ada Roth's education?",
    ),
    Demo(
        "What happens to the pressure of a gas when temperature is doubled and volume halved?",
        "",
        "Which law relates pressure, temperature and volume of a gas?",
    ),
    Demo("Can a penguin survive a night in the Sahara?", "", "Which temperatures can penguins live in?"),
)


@strategy(
    StrategyCard(
        name="step-back",
        title="Step-Back prompting",
        group="metacognition",
        calls="2 (3 with apart)",
        paper="Zheng et al., Take a step back: evoking reasoning via abstraction in large language models",
        arxiv="2310.06117",
        year=2023,
        acquired="manual",
        turns="single",
        shown_on="PaLM-2-L, GPT-4",
    )
)
def step_back(
    run: Run,
    question: str,
    *,
    demos: Annotated[
        Demos, Field(description="Questions with their step-back questions as answers.")
    ] = EXAMPLES,
    apart: Annotated[bool, Field(description="Answer the step-back question in a call of its own.")] = False,
    documents: Annotated[Any, Field(description="Where facts for the step-back question are found.")] = None,
    k: Annotated[int, Field(ge=1, description="Passages that are retrieved.")] = 3,
) -> str | None:
    shown = "".join(f"Q: {d.question}\nStep back: {d.answer}\n\n" for d in demos_of(demos))
    wanted = "" if apart else "Write the step-back question, and then its answer on the next line.\n\n"
    text = run.ask(f"{wanted}{shown}Q: {question}\nStep back:", "step back")
    asked, _, principle = text.partition("\n")
    if apart:
        principle = run.ask(f"Q: {asked}\nA:", "principle")
    known = ""
    if documents is not None:
        passages = Documents.read(documents).search(f"{asked} {question}", k)
        run.note("retrieved", data=[{"title": p.title, "text": p.text, "score": p.score} for p in passages])
        known = "\n".join(f"{p.title}: {p.text}" for p in passages) + "\n"
    return run.parse(
        run.ask(f"{known}{asked}\n{principle.strip()}\n\nQ: {run.asked}\n{run.form}\nA:", "answer")
    )
