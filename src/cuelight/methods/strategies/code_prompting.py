"""Code prompting: the text becomes code whose comments keep the text and whose conditions are ``if``; it is not run.

The model answers from the code, which makes it follow the conditions.

Calls: 2.  Source: Puerto et al., "Code prompting elicits conditional reasoning abilities in text+code LLMs", EMNLP 2024,
arXiv 2401.10065.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy

EXAMPLE = """Text: You can apply if you are over 18. You also need a permit, unless you are a citizen.
Question: I am 20 and a citizen. Can I apply?
Code:
# I am 20 and a citizen.
age = 20
citizen = True
permit = None
# You can apply if you are over 18. You also need a permit, unless you are a citizen.
if age > 18:
    if permit or citizen:
        can_apply = True
# Can I apply?
answer = can_apply

"""


@strategy(
    StrategyCard(
        name="code-prompting",
        title="Code prompting",
        group="reasoning",
        calls="2",
        paper="Puerto et al., Code prompting elicits conditional reasoning abilities in text+code LLMs",
        arxiv="2401.10065",
        year=2024,
        acquired="model-generated",
        turns="multi",
        shown_on="GPT-3.5, Mixtral",
    )
)
def code_prompting(
    run: Run,
    question: str,
    *,
    context: Annotated[str, Field(description="Text that comes with the question.")] = "",
    example: Annotated[str, Field(description="A text, a question and their code.")] = EXAMPLE,
) -> str | None:
    text = context or "(none)"
    code = run.ask(f"{example}Text: {text}\nQuestion: {run.asked}\nCode:\n", "code", stop=("\nText:",))
    return run.parse(run.ask(f"{code}\n\nRead the code and answer: {run.asked}\n{run.form}\nA:", "answer"))
