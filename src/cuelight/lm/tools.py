"""Tools that a model may call by name: a calculator, search and lookup in the user's documents, Python in the sandbox.

A tool takes a text and returns a text.  What goes wrong is an answer too ("error: ..."), for the model to read.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuelight.lm.documents import Documents
from cuelight.sandbox import run_python

__all__ = ["Tool", "calculate", "toolbox"]

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_MOST = 1000


@dataclass(frozen=True)
class Tool:
    """Something a model may use: ``run`` takes the text between the brackets."""

    name: str
    says: str
    run: Callable[[str], str]


def calculate(expression: str) -> float | int:
    """The value of an arithmetic expression: ``+ - * / // % **``, brackets, numbers; ``^`` and ``x`` are read too.

    Raises:
        ValueError: it is no such expression, or its value is too large to be meant.
    """
    text = re.sub(
        r"(?<=\d),(?=\d{3})", "", expression.strip().rstrip("=").replace("^", "**").replace("$", "")
    )
    text = re.sub(r"(?<=[\d)])\s*[x×]\s*(?=[\d(])", "*", text).replace("÷", "/").replace("−", "-")
    if len(text) > 300:
        raise ValueError("the expression is too long")
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError) as error:
        raise ValueError(f"{text}: {error}") from error


def _value(node: ast.AST) -> float | int:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            if abs(right) > 100 or abs(left) > 1e6:
                raise ValueError("the power is too large")
            raised = left**right
            if isinstance(raised, complex):
                raise ValueError("the root of a negative number")
            return raised
        if type(node.op) in _BINARY:
            return _BINARY[type(node.op)](left, right)
    raise ValueError("only numbers, brackets and + - * / // % ** are known")


def _calculator(text: str) -> str:
    try:
        value = calculate(text)
    except ValueError as error:
        return f"error: {error}"
    return f"{value:.10g}"


class _Reader:
    """Search and lookup as ReAct has them: a page is opened, then read on from word to word."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.sentences: list[str] = []
        self.word, self.place = "", 0

    def search(self, text: str) -> str:
        passages = self.documents.article(text) or self.documents.search(text, 1)
        if not passages:
            near = self.documents.near_titles(text)
            return f"could not find [{text}]" + (f"; similar: {', '.join(near)}" if near else "")
        title = passages[0].title
        whole = " ".join(p.text for p in self.documents.article(title))
        self.sentences = re.split(r"(?<=[.!?])\s+", whole)
        self.word = ""
        return f"({title}) {passages[0].text}"

    def lookup(self, text: str) -> str:
        if not self.sentences:
            return "error: search for a page first"
        if text.lower() != self.word:
            self.word, self.place = text.lower(), 0
        found = [s for s in self.sentences if self.word in s.lower()]
        if self.place >= len(found):
            return "no more results" if found else f"[{text}] is not on the page"
        self.place += 1
        return f"(result {self.place} of {len(found)}) {found[self.place - 1]}"


def toolbox(documents: Documents | None = None, *, unprotected: bool = False) -> dict[str, Tool]:
    """The tools by name; ``search`` and ``lookup`` are there when there are documents."""

    def python(code: str) -> str:
        """Run the code; a last line that is an expression is its value."""
        ran = run_python(_with_value(code), unprotected=unprotected)
        if ran.error:
            return f"error: {ran.error}"[:_MOST]
        shown = ran.stdout.strip() or ("" if ran.value is None else str(ran.value))
        return shown[:_MOST] or "(no output)"

    tools = [
        Tool("calculator", "the value of an arithmetic expression", _calculator),
        Tool("python", "runs a Python program and gives what it prints", python),
    ]
    if documents is not None:
        reader = _Reader(documents)
        tools += [
            Tool("search", "finds a page about a subject", reader.search),
            Tool("lookup", "the next sentence of the page that has a word", reader.lookup),
        ]
    return {tool.name: tool for tool in tools}


def _with_value(code: str) -> str:
    """``code`` with its last expression assigned to ``ans``."""
    lines = code.strip().strip("`").removeprefix("python\n")
    try:
        tree = ast.parse(lines)
    except SyntaxError:
        return lines
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = tree.body[-1]
        tree.body[-1] = ast.Assign([ast.Name("ans", ast.Store())], last.value, lineno=last.lineno)
        return ast.unparse(ast.fix_missing_locations(tree))
    return lines
