"""ART: a program of steps that call tools, written after the programs of similar tasks from a library.

The library's tasks most like the question give the demonstrations.  The model writes steps ``Q1: [tool] input``; where it
names a tool it is stopped, the tool is used, its output is inserted as ``#1: ...``, and it goes on until ``[EOQ]``.
A ``[generate]`` step is the model's own thought.

Calls: one for each tool use and one.  Source: Paranjape et al., "ART: automatic multi-step reasoning and tool-use for large
language models", 2023, arXiv 2303.09014.  *Departures*: a library of three programs of our own, which you may replace with a
text file (programs divided by blank lines), as the paper lets users edit its library.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cuelight.data.files import read_text
from cuelight.errors import DataError
from cuelight.lm.documents import Documents, embed
from cuelight.lm.tools import toolbox
from cuelight.methods.strategy import Run, StrategyCard, strategy

LIBRARY = """Task: arithmetic in a story
Input: Ann buys 3 books at 12 euros and pays with 50. What does she get back?
Q1: [calculator] 3 * 12
#1: 36
Q2: [calculator] 50 - 36
#2: 14
Q3: [EOQ]
Ans: 14

Task: a question about facts in documents
Input: Who built the old bridge?
Q1: [search] old bridge
#1: (Old bridge) The old bridge was built by Marta Klein in 1881.
Q2: [generate] who is named as the builder
#2: Marta Klein
Q3: [EOQ]
Ans: Marta Klein

Task: letters and words
Input: Which are the last letters of "sun day"?
Q1: [python] "".join(word[-1] for word in "sun day".split())
#1: ny
Q2: [EOQ]
Ans: ny"""
_STEP = re.compile(r"Q(\d+):\s*\[(\w+)\]\s*([^\n]*)")


@strategy(
    StrategyCard(
        name="art",
        title="Automatic Reasoning and Tool-use (ART)",
        group="knowledge",
        calls="one for each tool use and one",
        paper="Paranjape et al., ART: automatic multi-step reasoning and tool-use for large language models",
        arxiv="2303.09014",
        year=2023,
        acquired="hybrid",
        turns="multi",
        shown_on="GPT-3",
    )
)
def art(
    run: Run,
    question: str,
    *,
    library: Annotated[
        Path | None, Field(description="Text file with programs divided by blank lines.")
    ] = None,
    documents: Annotated[
        Any, Field(description="What search reads: a folder, a file, a list of texts.")
    ] = None,
    count: Annotated[int, Field(ge=1, description="Programs shown as examples.")] = 2,
    steps: Annotated[int, Field(ge=1, description="Most tool uses.")] = 8,
    unprotected: Annotated[bool, Field(description="Run Python where it can not be isolated.")] = False,
    encoder: Annotated[
        str, Field(description="What finds similar tasks: words or a sentence encoder.")
    ] = "words",
) -> str | None:
    text = LIBRARY if library is None else read_text(library)[0]
    programs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not programs or any("Input:" not in p or "Q1:" not in p for p in programs):
        raise DataError("library: a program needs the lines 'Task:', 'Input:', 'Q1: [tool] ...' and 'Ans:'")
    vectors = embed([*programs, question], encoder)
    like = vectors[:-1] @ vectors[-1]
    chosen = [programs[k] for k in sorted(range(len(programs)), key=lambda k: like[k])[-count:]]
    run.note("programs", "\n\n".join(chosen))
    tools = toolbox(None if documents is None else Documents.read(documents), unprotected=unprotected)
    written = ""
    head = "\n\n".join(chosen) + f"\n\nTools: {', '.join(tools)}, generate\nInput: {run.asked}\n"
    for _ in range(steps + 1):
        said = run.ask(f"{head}{written}", "program", stop=("\n#", "\nTask:", "\nInput:"))
        step = _STEP.search(said)
        while step is not None and step[2] not in tools and step[2] != "EOQ":
            step = _STEP.search(said, step.end())
        if step is None or step[2] == "EOQ":
            answer = re.search(r"Ans:\s*(.+)", said)
            if answer is None:  # it ended, or was stopped behind a thought of its own
                written += f"{said}\n"
                said = run.ask(f"{head}{written}Ans:", "answer", stop=("\n",), max_tokens=64)
                return run.parse(f"The answer is {said}")
            return run.parse(f"The answer is {answer[1]}")
        output = tools[step[2]].run(step[3])
        run.note("tool", output, tool=step[2], given=step[3])
        written += f"{said[: step.end()]}\n#{step[1]}: {output}\n"
    return None
