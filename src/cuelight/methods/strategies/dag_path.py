"""End-to-End DAG-Path prompting: a graph is told as the paths through it, from its sources to its sinks, and its edges.

The graph is made acyclic (an edge of a cycle, or an undirected one, goes from the node that a breadth-first walk reaches
first), all paths from nodes without a predecessor to nodes without a successor are listed, those with a common beginning
compressed into one line; the list of the original edges stands behind them.

Calls: 1.  Source: Hong et al., "End-to-end graph flattening method for large language models" (EEDP), CLNLP 2024, arXiv
2409.14880.  *Departures*: the form of the compression is our own: a shared beginning is written once, its
continuations in braces.  *Ours*: at most ``most`` paths are listed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.strategy import Run, StrategyCard, strategy

if TYPE_CHECKING:
    import networkx as nx

_EDGE = re.compile(r"(\w+(?:\.\w+)*)\s*(->|--|→|—)\s*(?=(\w+(?:\.\w+)*))")


@strategy(
    StrategyCard(
        name="dag-path",
        title="End-to-End DAG-Path (EEDP) prompting",
        group="reasoning",
        calls="1",
        paper="Hong et al., End-to-end graph flattening method for large language models",
        arxiv="2409.14880",
        year=2024,
    )
)
def dag_path(
    run: Run,
    question: str,
    *,
    edges: Annotated[
        Any, Field(description="Edges: 'A->B, B--C', or pairs; else those in the question.")
    ] = None,
    most: Annotated[int, Field(ge=1, description="Most paths that are listed.")] = 100,
) -> str | None:
    found = _edges(edges if edges is not None else question)
    if not found:
        raise ConfigError(
            "edges: there are none; give them like 'A->B, B->C', or write them so in the question"
        )
    paths = end_to_end(acyclic(found), most)
    told = compressed(paths)
    run.note("paths", told, count=len(paths))
    listed = ", ".join(f"{a}{'->' if directed else '--'}{b}" for a, b, directed in found)
    return run.parse(
        run.ask(f"A graph by its paths:\n{told}\nEdges: {listed}\n\nQ: {run.asked}\n{run.form}\nA:", "answer")
    )


def _edges(given: Any) -> list[tuple[str, str, bool]]:
    if isinstance(given, str):
        return [(a, b, arrow in ("->", "→")) for a, arrow, b in _EDGE.findall(given)]
    return [(str(edge[0]), str(edge[1]), True) for edge in given]


def acyclic(edges: Sequence[tuple[str, str, bool]]) -> nx.DiGraph:
    """The graph as a directed acyclic one: undirected edges and those of cycles go the way a breadth-first walk does."""
    import networkx as nx

    both = nx.Graph((a, b) for a, b, _ in edges)
    directed = nx.DiGraph((a, b) for a, b, arrow in edges if arrow)
    rank: dict[str, int] = {}
    for start in [*(n for n in directed if directed.in_degree(n) == 0), *both]:
        for node in itertools.chain([start], (v for _, v in nx.bfs_edges(both, start))):
            rank.setdefault(node, len(rank))
    cyclic = {n for part in nx.strongly_connected_components(directed) if len(part) > 1 for n in part}
    made = nx.DiGraph()
    for a, b, arrow in edges:
        if a == b:
            continue
        keep = arrow and not (a in cyclic and b in cyclic)
        made.add_edge(*((a, b) if keep or rank[a] < rank[b] else (b, a)))
    while not nx.is_directed_acyclic_graph(made):  # mixed graphs may keep one
        cycle = nx.find_cycle(made)
        made.remove_edge(*max(cycle, key=lambda edge: rank[edge[0]]))
    return made


def end_to_end(graph: nx.DiGraph, most: int) -> list[list[str]]:
    """Paths from nodes without a predecessor to nodes without a successor, in the order of names."""
    import networkx as nx

    starts = sorted(n for n in graph if graph.in_degree(n) == 0)
    ends = sorted(n for n in graph if graph.out_degree(n) == 0)
    every = (path for start in starts for end in ends for path in nx.all_simple_paths(graph, start, end))
    return sorted(itertools.islice(every, most))


def compressed(paths: Sequence[Sequence[str]]) -> str:
    """Paths as text, a common beginning written once: ``A->B->{C->D, E}``."""

    def told(group: Sequence[Sequence[str]]) -> str:
        firsts = list(dict.fromkeys(path[0] for path in group))
        parts = []
        for first in firsts:
            rest = [path[1:] for path in group if path[0] == first and len(path) > 1]
            if not rest:
                parts.append(first)
            else:
                inner = told(rest)
                many = len({path[0] for path in rest}) > 1
                parts.append(f"{first}->{{{inner}}}" if many else f"{first}->{inner}")
        return ", ".join(parts)

    starts = list(dict.fromkeys(path[0] for path in paths))
    return "\n".join(told([path for path in paths if path[0] == start]) for start in starts)
