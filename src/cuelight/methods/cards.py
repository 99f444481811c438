"""Which methods there are and what they say of themselves, read from their files without importing them.

A method's module needs torch, which takes seconds to import; listing, help and shell completion must not
wait for it.  The folder is the list, and a card is a call with literal arguments, so reading the source is
enough.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

__all__ = ["Card", "method_modules", "method_names", "read_card"]


@dataclass(frozen=True)
class Card:
    """What a method says of itself; its page and ``cuelight methods`` are made from it.

    ``kinds`` and ``tasks`` are what it runs on; ``peft`` is the PEFT type its artifact can be exchanged with.
    """

    name: str
    title: str
    family: str
    modality: str
    learns: str
    cost: str
    kinds: tuple[str, ...] = ("causal", "seq2seq")
    tasks: tuple[str, ...] = ("classification", "multilabel", "generation")
    paper: str = ""
    arxiv: str = ""
    year: int | None = None
    peft: str | None = None

    @property
    def reads(self) -> str:
        """What its data holds: ``text`` or ``image``."""
        return "image" if self.modality.startswith("vision") else "text"


@cache
def method_modules() -> dict[str, str]:
    """Module path of every method by name, without importing any of them."""
    import cuelight.methods as root

    found = {}
    for family in pkgutil.iter_modules(root.__path__, root.__name__ + "."):
        if family.ispkg:
            folder = importlib.import_module(family.name)
            if not getattr(folder, "holds_methods", True):
                continue
            for module in pkgutil.iter_modules(folder.__path__, family.name + "."):
                found[module.name.rsplit(".", 1)[1].replace("_", "-")] = module.name
    for point in entry_points(group="cuelight.methods"):
        found.setdefault(point.name, point.value)
    return found


def method_names() -> list[str]:
    """All methods this installation has, baselines first."""
    return sorted(method_modules(), key=lambda n: (".baselines." not in method_modules()[n], n))


@cache
def read_card(name: str) -> tuple[Card, str]:
    """The card and the docstring of the method called ``name``, from its source.

    A card that is not written with literal arguments is taken from the imported module.
    """
    path = method_modules()[name].partition(":")[0]
    spec = importlib.util.find_spec(path)
    tree = (
        ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        if spec and spec.origin
        else ast.Module([], [])
    )
    doc = ast.get_docstring(tree) or ""
    for fields in _cards(tree):
        if fields.get("name") == name:
            return Card(**fields), doc
    from cuelight.methods.base import get_method

    return get_method(name).card, doc


def _cards(tree: ast.Module) -> Iterator[dict[str, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Card":
            try:
                yield {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            except ValueError:
                continue
