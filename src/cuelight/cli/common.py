"""What several commands share: the options of methods and data, completion, names of output folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cuelight.cli.options import HeadedOption, Setting, settings

__all__ = [
    "BackboneType",
    "DataType",
    "data_settings",
    "device_options",
    "fill",
    "method_settings",
    "plain",
    "required",
    "say",
    "slug",
]

HEADINGS = ("The method's own", "Training", "Task", "Data")


def method_settings(names: Sequence[str]) -> list[Setting]:
    """The fields that ``names`` take together, each once, under its heading."""
    from cuelight.methods.base import get_method
    from cuelight.tuning import option_homes

    found: dict[str, Setting] = {}
    for level, heading in enumerate(HEADINGS):
        for name in names:
            defaults = (
                dict(get_method(name).training_defaults) if heading == "Training" and len(names) == 1 else {}
            )
            for setting in settings(option_homes(name)[level], heading, defaults):
                found.setdefault(setting.name, setting)
    if "seed" in found:
        from cuelight.cli.options import DATA_HELP

        seed = found.pop("seed")
        found["seed"] = Setting("seed", seed.annotation, 0, DATA_HELP["seed"], "Training", seed.limits)
    return list(found.values())


def data_settings() -> list[Setting]:
    """The fields of `DataSpec`."""
    from cuelight.data.spec import DataSpec

    return settings(DataSpec, "Data")


class BackboneType(click.ParamType):
    """A backbone; completes the built-in names and folders."""

    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from cuelight.backbones.builtin.catalogue import BUILTIN

        found = [
            CompletionItem(name, help=b.kind) for name, b in BUILTIN.items() if name.startswith(incomplete)
        ]
        return [*found, CompletionItem(incomplete, type="dir")]


class DataType(click.ParamType):
    """A data source; completes the built-in names, files and folders."""

    name = "SOURCE"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from cuelight.data import builtin_names

        found = [CompletionItem(name) for name in builtin_names() if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")]


def required() -> list[click.Parameter]:
    """``--backbone`` and ``--data``."""
    return [
        HeadedOption(
            ["--backbone"],
            heading="Required",
            required=True,
            type=BackboneType(),
            metavar="NAME",
            help="Built-in name ('cuelight backbones' lists them), folder, or hub id; for text prompts also URL#MODEL of an "
            "OpenAI-compatible server.",
        ),
        HeadedOption(
            ["--data"],
            heading="Required",
            required=True,
            type=DataType(),
            metavar="SOURCE",
            help="CSV, TSV, JSONL or Parquet file, folder, hub id, or built-in name.",
        ),
    ]


def device_options() -> list[click.Parameter]:
    """``--device`` and ``--dtype``."""
    return [
        HeadedOption(
            ["--device"],
            metavar="NAME",
            default="auto",
            help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]",
        ),
        HeadedOption(
            ["--dtype"],
            metavar="TYPE",
            default="auto",
            help="Type of the frozen weights: auto, float32, bfloat16 or float16.  [default: auto]",
        ),
    ]


def plain(doc: str) -> str:
    """A docstring without its marks."""
    return re.sub(r"\*(\S[^*]*?)\*", r"\1", doc.replace("``", ""))


def slug(name: str) -> str:
    """A model's or data set's name as part of a folder's name."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet") else path.name
    return re.sub(r"[^A-Za-z0-9.]+", "-", stem).strip("-.") or "data"


def fill(options: dict[str, Any]) -> list[str]:
    """``options`` as the words of a command line."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        if isinstance(value, dict):
            value = ",".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, tuple | list):
            value = ",".join(map(str, value))
        words += [f"--{flag}", str(value).replace("\n", "\\n")]
    return words


def say(*lines: str) -> None:
    """Print lines on stdout as they are."""
    for line in lines:
        click.echo(line)
