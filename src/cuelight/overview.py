"""What this installation has: methods and built-in backbones, as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cuelight.backbones.builtin import BUILTIN, cache_dir, cached_bytes, is_cached

__all__ = ["backbones", "methods"]


def methods() -> list[dict[str, Any]]:
    """The card of every method, baselines first, as dictionaries."""
    from cuelight.methods.base import all_cards

    return [asdict(card) for card in all_cards()]


def backbones() -> list[dict[str, Any]]:
    """The built-in backbones: name, kind, parameters, licence, origin, download size, and whether each is here."""
    return [
        {
            "name": b.name,
            "kind": b.kind,
            "parameters": b.parameters,
            "licence": b.licence,
            "origin": b.origin,
            "download": sum(p.size for p in b.packages),
            "here": is_cached(b.name),
            "bytes": cached_bytes(b.name),
            "cache": str(cache_dir()),
        }
        for b in BUILTIN.values()
    ]
