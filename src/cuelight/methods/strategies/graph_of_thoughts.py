"""Graph of Thoughts: thoughts that are generated, scored, merged and refined along a directed acyclic graph.

What the survey cites under this name (Yao, Li and Zhao, "Beyond chain-of-thought, effective graph-of-thought reasoning in
language models", arXiv 2305.16582) *trains*: it builds a graph of triples out of the text and trains a graph encoder with
gated fusion beside T5.  That is a model, not a prompt.  What runs here is the inference technique of the same name by Besta
et al., "Graph of thoughts: solving elaborate problems with large language models", AAAI 2024, arXiv 2308.09687: operations
on thoughts, in topological order of their graph.

The plan is text, one operation after the other: ``generate:3`` writes that many thoughts from each there is, ``score`` has
each rated from 0 to 10, ``keep:2`` keeps the best, ``aggregate`` merges all into one, ``refine`` improves each.  In Python,
``graph`` gives a graph whose nodes have operations and read from several others.

Calls: of the default plan 3 + 3 + 1 + 1 + 1.  Source: as said above.  *Departures*: general wording, where the paper writes
prompts for each task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.strategy import Run, StrategyCard, strategy

OPERATIONS = ("generate", "score", "keep", "aggregate", "refine")


@strategy(
    StrategyCard(
        name="graph-of-thoughts",
        title="Graph-of-Thoughts (GoT) prompting",
        group="reasoning",
        calls="of the default plan 9: generate 3, score 3, aggregate 1, refine 1, answer 1",
        paper="Yao, Li and Zhao, Beyond chain-of-thought, effective graph-of-thought reasoning in language models",
        arxiv="2305.16582",
        year=2023,
        acquired="retrieval",
        turns="multi",
        shown_on="T5-large",
        kind="training",
    )
)
def graph_of_thoughts(
    run: Run,
    question: str,
    *,
    plan: Annotated[
        str, Field(description="Operations in a row: generate:K, score, keep:N, aggregate, refine.")
    ] = ("generate:3,score,keep:2,aggregate,refine"),
    graph: Annotated[
        Any, Field(description="Python: {node: (operation, [nodes it reads])}, instead of plan.")
    ] = None,
    temperature: Annotated[float, Field(ge=0, description="Temperature of generated thoughts.")] = 0.7,
) -> str | None:
    import networkx as nx

    nodes: Mapping[str, tuple[str, Sequence[str]]] = graph or _chain(plan)
    order = nx.DiGraph()
    for name, (operation, sources) in nodes.items():
        _parsed(operation)
        order.add_node(name)
        for source in sources:
            if source not in nodes:
                raise ConfigError(f"graph: node {name} reads from {source}, which is not there")
            order.add_edge(source, name)
    if not nx.is_directed_acyclic_graph(order):
        raise ConfigError("graph: has a cycle; operations must be able to stand in an order")
    thoughts: dict[str, list[tuple[str, float]]] = {}
    last = ""
    for name in nx.lexicographical_topological_sort(order, key=list(nodes).index):
        operation, sources = nodes[name]
        given = [thought for source in sources for thought in thoughts[source]] or [("", 0.0)]
        thoughts[name] = _operated(run, operation, given, temperature)
        run.note(operation, data=[text for text, _ in thoughts[name]], node=name, reads=list(sources))
        last = name
    best = max(thoughts[last], key=lambda t: t[1])[0]
    return run.parse(run.ask(f"Problem: {run.asked}\nSolution: {best}\n{run.form}\nA:", "answer"))


def _chain(plan: str) -> dict[str, tuple[str, list[str]]]:
    parts = [part.strip() for part in plan.split(",") if part.strip()]
    if not parts:
        raise ConfigError("plan: is empty; give operations like generate:3,score,keep:1")
    return {f"{k + 1}": (part, [str(k)] if k else []) for k, part in enumerate(parts)}


def _parsed(operation: str) -> tuple[str, int]:
    name, _, number = operation.partition(":")
    if name not in OPERATIONS or (number and not number.isdigit()) or number == "0":
        raise ConfigError(
            f"plan: '{operation}' is no operation; there are generate:K, score, keep:N, aggregate, refine"
        )
    return name, int(number or 1)


def _operated(
    run: Run, operation: str, given: list[tuple[str, float]], temperature: float
) -> list[tuple[str, float]]:
    name, count = _parsed(operation)
    head = f"Problem: {run.asked}\n"
    if name == "generate":
        prompts = [
            head + (f"So far: {text}\nGo on." if text else "Write a solution, step by step.")
            for text, _ in given
            for _ in range(count)
        ]
        return [(text, 0.0) for text in run.ask_all(prompts, "generate", temperature=temperature)]
    if name == "score":
        prompts = [f"{head}Solution: {text}\nHow right is it, from 0 to 10? Score:" for text, _ in given]
        return [
            (text, _mark(said))
            for (text, _), said in zip(given, run.ask_all(prompts, "score", max_tokens=16), strict=True)
        ]
    if name == "keep":
        return sorted(given, key=lambda t: -t[1])[:count]
    if name == "aggregate":
        listed = "\n".join(f"Solution {k + 1}: {text}" for k, (text, _) in enumerate(given))
        return [
            (
                run.ask(
                    f"{head}{listed}\nMerge them into one solution that has what is right in each:",
                    "aggregate",
                ),
                0.0,
            )
        ]
    prompts = [f"{head}Solution: {text}\nFind its mistakes and write it better:" for text, _ in given]
    return [(better, mark) for (_, mark), better in zip(given, run.ask_all(prompts, "refine"), strict=True)]


def _mark(text: str) -> float:
    found = re.search(r"\d+(?:\.\d+)?", text)
    return min(float(found[0]), 10.0) if found else 0.0
