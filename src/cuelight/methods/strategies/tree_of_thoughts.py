"""Tree of Thoughts: a search over partial solutions that the model proposes and values itself.

From every state that is kept the model proposes next thoughts.  ``value``: each new state is rated some times as sure,
likely or impossible (20, 1, 0.001) and the ratings are summed; ``vote``: the model votes some times for the most promising
of all new states.  *bfs* keeps the ``breadth`` best of a level; *dfs* goes on from the best first, prunes states of a value
below ``threshold`` and backtracks.  The best final state is answered from.

Calls, bfs with values: for each of ``depth`` levels, one for each kept state and ``ratings`` for each new one; then 1.
Source: Yao et al., "Tree of thoughts: deliberate problem solving with large language models", NeurIPS 2023, arXiv
2305.10601 (Long, 2305.08291, is a tree search under another controller).  *Departures*: general wording, where the paper
writes prompts for each task; in Python, ``propose`` and ``value`` may be the user's own functions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cuelight.methods.strategy import Run, StrategyCard, strategy

RATINGS = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s*(.+)$", re.MULTILINE)
_DONE = re.compile(r"answer is|\bdone\b", re.IGNORECASE)

State = tuple[str, ...]


@strategy(
    StrategyCard(
        name="tree-of-thoughts",
        title="Tree-of-Thoughts (ToT) prompting",
        group="reasoning",
        calls="per level: one for each kept state, ratings for each new one (or votes); then 1",
        paper="Yao et al., Tree of thoughts: deliberate problem solving with large language models",
        arxiv="2305.10601",
        year=2023,
        acquired="retrieval",
        turns="multi",
        shown_on="GPT-4",
    )
)
def tree_of_thoughts(
    run: Run,
    question: str,
    *,
    search: Annotated[
        Literal["bfs", "dfs"], Field(description="Breadth first, or depth first with backtracking.")
    ] = "bfs",
    depth: Annotated[int, Field(ge=1, description="Most thoughts in a row.")] = 3,
    proposals: Annotated[int, Field(ge=1, description="Next thoughts for each state.")] = 3,
    breadth: Annotated[int, Field(ge=1, description="States kept in a level (bfs).")] = 5,
    evaluation: Annotated[
        Literal["value", "vote"], Field(description="How states are compared (bfs).")
    ] = "value",
    ratings: Annotated[int, Field(ge=1, description="Ratings of a state, or votes of a level.")] = 3,
    threshold: Annotated[float, Field(description="States valued below it are pruned (dfs).")] = 1.0,
    budget: Annotated[int, Field(ge=1, description="Most states that are opened (dfs).")] = 30,
    temperature: Annotated[float, Field(ge=0, description="Temperature of proposals and ratings.")] = 0.7,
    propose: Annotated[
        Any, Field(description="Python: a function of a state that lists next thoughts.")
    ] = None,
    value: Annotated[Any, Field(description="Python: a function of a state that values it.")] = None,
) -> str | None:
    grow: Callable[[State], list[str]] = propose or (
        lambda state: _proposed(run, state, proposals, temperature)
    )
    rate: Callable[[State], float] = value or (lambda state: _rated(run, state, ratings, temperature))
    if search == "dfs":
        best = _dfs(run, grow, rate, depth, threshold, budget)
    else:
        voters = None if evaluation == "value" or value else ratings
        best = _bfs(run, grow, rate, depth, breadth, voters, temperature)
    run.note("best", "\n".join(best))
    if best and _DONE.search(best[-1]) and run.parse(best[-1]):
        return run.parse(best[-1])
    return run.parse(run.ask(f"{_told(run, best)}\nNow answer. {run.form}\nA:", "answer"))


def _bfs(
    run: Run,
    grow: Callable[[State], list[str]],
    rate: Callable[[State], float],
    depth: int,
    breadth: int,
    votes: int | None,
    temperature: float,
) -> State:
    kept: list[State] = [()]
    for level in range(depth):
        opened = [(*state, thought) for state in kept if not _final(state) for thought in grow(state)]
        new = list(dict.fromkeys(opened))
        if not new:
            break
        finished = [state for state in kept if _final(state)]
        candidates = finished + new
        rated = votes is None
        values = (
            {s: rate(s) for s in candidates} if rated else _voted(run, candidates, votes or 0, temperature)
        )
        kept = sorted(candidates, key=lambda s: -values[s])[:breadth]
        run.note("level", data={" | ".join(s): values[s] for s in candidates}, level=level + 1)
    return kept[0]


def _dfs(
    run: Run,
    grow: Callable[[State], list[str]],
    rate: Callable[[State], float],
    depth: int,
    threshold: float,
    budget: int,
) -> State:
    """The first final state, or one of full depth, on the best way; else the best state seen."""
    best: tuple[float, State] = (float("-inf"), ())
    left = budget

    def visit(state: State, worth: float) -> State | None:
        nonlocal best, left
        if state and (len(state), worth) > (len(best[1]), best[0]):
            best = (worth, state)
        if _final(state) or len(state) == depth:
            return state
        if left <= 0:
            return None
        left -= 1
        children = [(*state, thought) for thought in dict.fromkeys(grow(state))]
        valued = sorted(((rate(child), child) for child in children), key=lambda pair: -pair[0])
        for worth_, child in valued:
            if worth_ < threshold:
                run.note("pruned", child[-1], value=worth_)
                continue
            found = visit(child, worth_)
            if found is not None:
                return found
            run.note("backtrack", child[-1])
        return None

    return visit((), 0.0) or best[1]


def _final(state: State) -> bool:
    return bool(state) and _DONE.search(state[-1]) is not None


def _told(run: Run, state: Sequence[str]) -> str:
    steps = "".join(f"Step {k + 1}: {thought}\n" for k, thought in enumerate(state))
    return f"Problem: {run.asked}\n{steps}"


def _proposed(run: Run, state: State, count: int, temperature: float) -> list[str]:
    text = run.ask(
        f"{_told(run, state)}List {count} different next steps, one a line, numbered. If a step solves the problem, "
        'let it say "the answer is".',
        "propose",
        temperature=temperature,
    )
    found = [item.strip() for item in _ITEM.findall(text)] or [
        line.strip() for line in text.splitlines() if line.strip()
    ]
    return found[:count]


def _rated(run: Run, state: State, count: int, temperature: float) -> float:
    texts = run.sample(
        f"{_told(run, state)}How likely do these steps lead to the right answer? Say sure, likely or impossible.\nJudgement:",
        count,
        "value",
        temperature,
        max_tokens=32,
    )
    total = 0.0
    for text in texts:
        said = re.findall(r"\b(sure|likely|impossible)\b", text.lower())
        total += RATINGS[said[-1]] if said else 0.0
    return total


def _voted(run: Run, states: Sequence[State], count: int, temperature: float) -> dict[State, float]:
    listed = "\n".join(f"Choice {k + 1}: {' '.join(state)}" for k, state in enumerate(states))
    texts = run.sample(
        f"Problem: {run.asked}\n{listed}\nWhich choice is the most promising? End with: the best choice is <number>.",
        count,
        "vote",
        temperature,
    )
    votes: Counter[int] = Counter()
    for text in texts:
        said = re.findall(r"\d+", text)
        if said:
            votes[int(said[-1]) - 1] += 1
    return {state: float(votes[k]) for k, state in enumerate(states)}
