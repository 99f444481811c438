"""Narrative-of-Thought: events become a Python class, are told as a story in the order of time, and then become edges.

The model first writes the story and then the order as pairs; the answer is a chain of events that agrees with the pairs
(cycles are broken at the last pair that closes one).

Calls: 1.  Source: Zhang, Beauchamp and Wang, "Narrative-of-thought: improving temporal reasoning of large language models
via recounted narratives", Findings of EMNLP 2024, arXiv 2410.05558.  *Departures*: our own example; the paper chooses
demonstrations by how short and accurate their stories are.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.strategy import Run, StrategyCard, strategy

EXAMPLE = """class Baking:
    def e1(self): "take the cake out"
    def e2(self): "mix the dough"
    def e3(self): "switch on the oven"
# Narrative: First the oven is switched on (e3) and the dough is mixed (e2). When the cake is done it is taken out (e1).
# Order:
edges = [(e3, e2), (e2, e1)]

"""
_EDGE = re.compile(r"\(\s*e(\d+)\s*,\s*e(\d+)\s*\)")


@strategy(
    StrategyCard(
        name="narrative-of-thought",
        title="Narrative-of-Thought (NoT) prompting",
        group="reasoning",
        calls="1",
        paper="Zhang, Beauchamp and Wang, Narrative-of-thought: improving temporal reasoning via recounted narratives",
        arxiv="2410.05558",
        year=2024,
    )
)
def narrative_of_thought(
    run: Run,
    question: str,
    *,
    events: Annotated[
        tuple[str, ...], Field(description="The events; else the lines of the question that begin with '-'.")
    ] = (),
    example: Annotated[str, Field(description="A class, its narrative and its edges.")] = EXAMPLE,
) -> str | None:
    import networkx as nx

    found = list(events) or [
        line.strip()[1:].strip() for line in question.splitlines() if line.strip().startswith("-")
    ]
    if len(found) < 2:
        raise ConfigError(
            "events: there are fewer than two; give them, or write each on a line that begins with '-'"
        )
    listed = "".join(f'    def e{k}(self): "{event}"\n' for k, event in enumerate(found, 1))
    text = run.ask(f"{example}class Events:\n{listed}# Narrative:", "narrative and order", stop=("\nclass ",))
    told, _, code = text.partition("edges")
    run.note("narrative", told.replace("# Order:", "").strip())
    order = nx.DiGraph()
    order.add_nodes_from(range(1, len(found) + 1))
    for a, b in ((int(a), int(b)) for a, b in _EDGE.findall(code or text)):
        if a in order and b in order and a != b and not nx.has_path(order, b, a):
            order.add_edge(a, b)
    if not order.edges:
        return None
    run.note("edges", data=[[found[a - 1], found[b - 1]] for a, b in order.edges])
    return " -> ".join(found[k - 1] for k in nx.lexicographical_topological_sort(order))
