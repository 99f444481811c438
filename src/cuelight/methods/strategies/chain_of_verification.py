"""Chain-of-Verification: the model plans questions that check its draft, answers them apart from it, and mends the draft.

Every check question is answered in a context of its own, which does not hold the draft (``factored``); with ``joint`` the
draft is visible, which the paper finds worse.

Calls: 3 and one for each check question.  Source: Dhuliawala et al., "Chain-of-verification reduces hallucination in large
language models", Findings of ACL 2024, arXiv 2309.11495.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy


@strategy(
    StrategyCard(
        name="chain-of-verification",
        title="Chain-of-Verification (CoVe) prompting",
        group="hallucination",
        calls="3 and one for each check question",
        paper="Dhuliawala et al., Chain-of-verification reduces hallucination in large language models",
        arxiv="2309.11495",
        year=2023,
        acquired="retrieval",
        turns="multi",
        shown_on="Llama-65B",
    )
)
def chain_of_verification(
    run: Run,
    question: str,
    *,
    checks: Annotated[int, Field(ge=1, description="Check questions.")] = 3,
    joint: Annotated[bool, Field(description="Let the answers to checks see the draft.")] = False,
) -> str | None:
    draft = run.ask(f"Q: {run.asked}\nA:", "draft")
    planned = run.ask(
        f"Q: {run.asked}\nDraft: {draft}\nWrite {checks} questions that check the facts of the draft, one a line:",
        "plan",
    )
    asked = [line.strip(" -*0123456789.)") for line in planned.splitlines() if re.search(r"\w", line)][
        :checks
    ]
    before = f"Draft: {draft}\n" if joint else ""
    answers = run.ask_all([f"{before}Q: {check}\nA:" for check in asked], "check")
    checked = "\n".join(f"Check: {check} {answer}" for check, answer in zip(asked, answers, strict=True))
    return run.parse(
        run.ask(
            f"Q: {run.asked}\nDraft: {draft}\n{checked}\nMend the draft by the checks. {run.form}\nA:",
            "final",
        )
    )
