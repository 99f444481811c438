"""Reverse Chain-of-Thought (geometry): a generator of geometry problems, from the answer back to the question.

The technique itself makes *training data* for multimodal models; it is no way to answer a question.  What runs here is its
data recipe: an engine chains primitives into a figure with a description and a drawing (SVG), derives single-step results and
chains them into a multi-step one, and the model poses the question whose answer each result is.  The trace's answer is
a JSON list of records: description, drawing, question, reasoning, answer.

The ``question`` names what to draw: any of square, rectangle, right triangle, circle, in the order in which they are
chained; each is built on a length of the one before it.

Calls: 1 for each result (single steps and the whole chain).  Source: Deng et al., "R-CoT: reverse chain-of-thought problem
generation for geometric reasoning in large multimodal models", 2024, arXiv 2410.17885.  *Departures*: four primitives of our
own, for the paper's larger set; numbers are computed, never written by the model.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from cuelight.errors import ConfigError
from cuelight.methods.strategy import Run, StrategyCard, strategy


@dataclass(frozen=True)
class Piece:
    """A primitive on a given length: what it is, its results as (name, value, reason), its drawing, the length it hands on."""

    says: str
    results: tuple[tuple[str, float, str], ...]
    drawing: str
    hands_on: float


def _square(name: str, side: float, draw: random.Random) -> Piece:
    return Piece(
        f"square {name} with side {side:g}",
        (
            (f"the area of square {name}", side**2, f"{side:g} * {side:g} = {side**2:g}"),
            (f"the perimeter of square {name}", 4 * side, f"4 * {side:g} = {4 * side:g}"),
        ),
        f'<rect width="{side * 10:g}" height="{side * 10:g}"/>',
        side,
    )


def _rectangle(name: str, side: float, draw: random.Random) -> Piece:
    other = draw.randint(2, 9)
    return Piece(
        f"rectangle {name} with sides {side:g} and {other}",
        (
            (f"the area of rectangle {name}", side * other, f"{side:g} * {other} = {side * other:g}"),
            (
                f"the perimeter of rectangle {name}",
                2 * (side + other),
                f"2 * ({side:g} + {other}) = {2 * (side + other):g}",
            ),
        ),
        f'<rect width="{side * 10:g}" height="{other * 10}"/>',
        float(other),
    )


def _triangle(name: str, leg: float, draw: random.Random) -> Piece:
    """Legs in the ratio 3 to 4, so that every length is exact."""
    other, long = leg * 4 / 3, leg * 5 / 3
    return Piece(
        f"right triangle {name} with legs {leg:g} and {other:g}",
        (
            (f"the hypotenuse of triangle {name}", long, f"sqrt({leg:g}^2 + {other:g}^2) = {long:g}"),
            (
                f"the area of triangle {name}",
                leg * other / 2,
                f"{leg:g} * {other:g} / 2 = {leg * other / 2:g}",
            ),
        ),
        f'<polygon points="0,0 {leg * 10:g},0 0,{other * 10:g}"/>',
        long,
    )


def _circle(name: str, radius: float, draw: random.Random) -> Piece:
    return Piece(
        f"circle {name} with radius {radius:g}",
        ((f"the diameter of circle {name}", 2 * radius, f"2 * {radius:g} = {2 * radius:g}"),),
        f'<circle cx="{radius * 10:g}" cy="{radius * 10:g}" r="{radius * 10:g}"/>',
        2 * radius,
    )


MAKERS: dict[str, Callable[[str, float, random.Random], Piece]] = {
    "square": _square,
    "rectangle": _rectangle,
    "triangle": _triangle,
    "circle": _circle,
}


@strategy(
    StrategyCard(
        name="reverse-cot",
        title="Reverse Chain-of-Thought (R-CoT), geometry problems",
        group="reasoning",
        calls="1 for each result of the figure, and 1 for the whole chain",
        paper="Deng et al., R-CoT: reverse chain-of-thought problem generation for geometric reasoning",
        arxiv="2410.17885",
        year=2024,
        kind="data",
    )
)
def reverse_cot(
    run: Run,
    question: str,
    *,
    start: Annotated[float, Field(gt=0, description="The first length of the figure.")] = 6.0,
) -> str | None:
    draw = random.Random(run.common.seed)
    pieces: list[Piece] = []
    length = start
    for k, kind in enumerate(re.findall("|".join(MAKERS), question.lower())):
        pieces.append(MAKERS[kind](chr(ord("A") + k % 26), length, draw))
        length = pieces[-1].hands_on
    if not pieces:
        raise ConfigError(f"question: names no figure; name some of {', '.join(MAKERS)}")
    links = [
        f"{pieces[k].says}, built on a length of the one before" if k else pieces[k].says
        for k in range(len(pieces))
    ]
    figure = "; then ".join(links) + "."
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" fill="none" stroke="black">{"".join(p.drawing for p in pieces)}</svg>'
    run.note("figure", figure, drawing=drawing)
    single = [(name, value, [reason]) for piece in pieces for name, value, reason in piece.results]
    last = pieces[-1].results[0]
    chain = [piece.results[0][2] for piece in pieces]
    wanted = [*single, (last[0], last[1], chain)] if len(pieces) > 1 else single
    hidden = links[0] + (
        "; then " + "; then ".join(re.sub(r" with .*?,", ",", link) for link in links[1:])
        if links[1:]
        else ""
    )
    prompts = [
        f"A figure: {hidden if len(reasons) > 1 else figure}\nReasoning: {'; '.join(reasons)}\nWrite the question whose "
        f"answer is {name}, {value:g}. Do not give the answer.\nQuestion:"
        for name, value, reasons in wanted
    ]
    posed = run.ask_all(prompts, "question", stop=("\n\n",), max_tokens=96)
    records = [
        {
            "description": figure,
            "drawing": drawing,
            "question": text,
            "reasoning": reasons,
            "asks": name,
            "answer": f"{value:g}",
        }
        for text, (name, value, reasons) in zip(posed, wanted, strict=True)
        if text
    ]
    return json.dumps(records, ensure_ascii=False) if records else None
