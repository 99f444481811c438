"""Runs a program statement by statement inside the sandbox, with given answers in place of what can not be run.

`step` is sent into the sandbox as text, in front of a call of it, so it imports the standard library alone.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

_MOST = 10_000


class _AskError(Exception):
    """A statement that can not be run and for which there is no answer yet."""

    def __init__(self, kind: str, line: str) -> None:
        super().__init__(line)
        self.kind, self.line = kind, line


class _Break(Exception):  # noqa: N818
    pass


class _Continue(Exception):  # noqa: N818
    pass


class _Stepper:
    def __init__(self, answers: list[Any]) -> None:
        self.space: dict[str, Any] = {}
        self.answers, self.steps = list(answers), 0

    def run(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.steps += 1
            if self.steps > _MOST:
                raise TimeoutError("the program takes more than 10000 steps")
            if isinstance(node, ast.If):
                self.run(node.body if self.value(node.test) else node.orelse)
            elif isinstance(node, ast.While):
                self.loop(node, self.while_true(node.test), None)
            elif isinstance(node, ast.For):
                self.loop(node, iter(list(self.value(node.iter))), node.target)
            elif isinstance(node, ast.Break):
                raise _Break
            elif isinstance(node, ast.Continue):
                raise _Continue
            else:
                self.statement(node)

    def while_true(self, test: ast.expr) -> Iterator[Any]:
        while self.value(test):
            yield None

    def loop(self, node: ast.For | ast.While, items: Iterator[Any], target: ast.expr | None) -> None:
        for item in items:
            if target is not None:
                self.space["__item"] = item
                given = ast.copy_location(ast.Assign([target], ast.Name("__item", ast.Load())), target)
                self.execute(given)
                self.space.pop("__item", None)
            try:
                self.run(node.body)
            except _Break:
                return
            except _Continue:
                continue
        self.run(node.orelse)

    def statement(self, node: ast.stmt) -> None:
        try:
            self.execute(node)
        except Exception:
            answer = self.answer("statement", node)
            self.space.update({str(k): v for k, v in dict(answer).items()})

    def execute(self, node: ast.stmt) -> None:
        tree = ast.fix_missing_locations(ast.Module([node], []))
        exec(compile(tree, "program", "exec"), self.space)

    def value(self, node: ast.expr) -> Any:
        try:
            return eval(
                compile(ast.fix_missing_locations(ast.Expression(node)), "program", "eval"), self.space
            )
        except Exception:
            return self.answer("value", node)

    def answer(self, kind: str, node: ast.AST) -> Any:
        if not self.answers:
            raise _AskError(kind, ast.unparse(node).split("\n")[0])
        return self.answers.pop(0)

    def state(self) -> dict[str, Any]:
        kept = (int, float, str, bool, list, tuple, dict, set, type(None))
        return {k: v for k, v in self.space.items() if not k.startswith("__") and isinstance(v, kept)}


def step(request: str) -> dict[str, Any]:
    """Run as far as the answers reach: the final state, or what has to be answered next."""
    program, answers = json.loads(request)
    try:
        tree = ast.parse(program)
    except SyntaxError as error:
        return {"done": True, "state": {}, "error": f"SyntaxError: {error.msg} (line {error.lineno})"}
    machine = _Stepper(answers)
    try:
        machine.run(tree.body)
    except _AskError as ask:
        return {"done": False, "kind": ask.kind, "line": ask.line, "state": machine.state()}
    except Exception as error:
        return {"done": True, "state": machine.state(), "error": f"{type(error).__name__}: {error}"}
    return {"done": True, "state": machine.state(), "error": ""}
