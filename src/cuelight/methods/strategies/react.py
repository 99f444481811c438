"""ReAct: thoughts and actions take turns; an action uses a real tool, and what it gives is the next observation.

The model writes a thought and an action (``calculator[3 * 4]``, ``search[...]``, ``lookup[...]``, ``python[...]``,
``finish[...]``); writing stops at "Observation", the tool is used, and its result is appended.  An action that can not be read
is answered with an error, so the model may mend it.

Calls: one for each step, at most ``steps``.  Source: Yao et al., "ReAct: synergizing reasoning and acting in language models",
ICLR 2023, arXiv 2210.03629.  *Departures*: search and lookup go over the user's documents instead of Wikipedia's interface;
calculator and Python (in the sandbox) are added; in Python, ``tools`` takes functions of the user's own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from cuelight.errors import ConfigError, nearest
from cuelight.lm.documents import Documents
from cuelight.lm.tools import Tool, toolbox
from cuelight.methods.strategy import Run, StrategyCard, strategy

EXAMPLE = """Q: A ticket costs 14 euros. What do 23 tickets cost?
Thought 1: I have to multiply 14 by 23.
Action 1: calculator[14 * 23]
Observation 1: 322
Thought 2: 23 tickets cost 322 euros.
Action 2: finish[322]

"""
_ACTION = re.compile(r"Action(?:\s*\d+)?\s*:\s*(\w+)\s*\[(.*?)\]\s*(?:$|\n)", re.DOTALL | re.IGNORECASE)
_LOOSE = re.compile(r"\b(\w+)\s*\[(.*)\]", re.DOTALL)


@strategy(
    StrategyCard(
        name="react",
        title="ReAct prompting",
        group="hallucination",
        calls="one for each step",
        paper="Yao et al., ReAct: synergizing reasoning and acting in language models",
        arxiv="2210.03629",
        year=2022,
        acquired="retrieval",
        turns="multi",
        shown_on="PaLM-540B, GPT-3",
    )
)
def react(
    run: Run,
    question: str,
    *,
    documents: Annotated[
        Any, Field(description="What search and lookup read: a folder, a file, a list of texts.")
    ] = None,
    tools: Annotated[
        Any, Field(description="Names of tools, A,B,...; in Python also {name: function}. Unset: all.")
    ] = None,
    steps: Annotated[int, Field(ge=1, description="Most steps.")] = 7,
    unprotected: Annotated[bool, Field(description="Run Python where it can not be isolated.")] = False,
) -> str | None:
    box = toolbox(None if documents is None else Documents.read(documents), unprotected=unprotected)
    chosen = _chosen(box, tools)
    listed = "\n".join(f"{tool.name}[...]: {tool.says}" for tool in chosen.values())
    head = f"Answer with thoughts and actions. Actions:\n{listed}\nfinish[answer]: ends with the answer\n\n"
    text = f"{head}{EXAMPLE if 'calculator' in chosen else ''}Q: {run.asked}\n"
    for number in range(1, steps + 1):
        said = run.ask(f"{text}Thought {number}:", "thought and action", stop=("\nObservation", "\nQ:"))
        action = _ACTION.search(f"{said}\n") or _LOOSE.search(said)
        told = said[: action.end()].rstrip() if action else said
        text += f"Thought {number}: {told}\n"
        name, given = (action[1].lower(), action[2].strip()) if action else ("", "")
        if name == "finish":
            return run.parse(f"The answer is {given}")
        if name in chosen:
            seen = chosen[name].run(given)
        else:
            seen = f"error: no action was read; write one of {', '.join([*chosen, 'finish'])} with its [text]"
        run.note("observation", seen, tool=name, given=given)
        text += f"Observation {number}: {seen}\n"
    return None


def _chosen(box: dict[str, Tool], tools: Any) -> dict[str, Tool]:
    if tools is None:
        return box
    if isinstance(tools, dict):
        return {
            str(name): Tool(str(name), (function.__doc__ or "").strip(), function)
            for name, function in tools.items()
        }
    names = [name.strip() for name in tools.split(",")] if isinstance(tools, str) else list(tools)
    for name in names:
        if name not in box:
            raise ConfigError(
                f"tools: '{name}' is unknown{nearest(name, box)}; there are {', '.join(box)} (search needs documents)"
            )
    return {name: box[name] for name in names}
