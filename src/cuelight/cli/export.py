"""``cuelight export``: what was learned, in the formats of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuelight.cli.common import BackboneType, device_options, say
from cuelight.cli.options import HeadedCommand, HeadedOption

__all__ = ["export"]


def _export(**params: Any) -> None:
    """Write what was learned for other libraries.

    DIR is the --output of a run.  TARGET becomes a PEFT adapter, or with --as model the fine-tuned backbone
    itself, as transformers and --backbone read it; a soft prompt that was learned with it stays in DIR.

    A text prompt (DIR may be a conversation with promptor, too) is written as it is sent, byte for byte: as text, as
    OpenAI messages, as a promptfoo configuration, or as a DSPy program for cuelight.dspy_bridge.
    """
    import cuelight
    from cuelight.text_export import FORMS

    if params["as"] in FORMS:
        found = cuelight.text_prompt(Path(params["folder"]))
        say(str(found.save(params["as"], params["target"])))
        return
    prompt = cuelight.load(
        params["folder"], backbone=params["backbone"], device=params["device"], dtype=params["dtype"]
    )
    write = prompt.export_model if params["as"] == "model" else prompt.export_peft
    say(str(write(params["target"])))


export = HeadedCommand(
    "export",
    callback=_export,
    help=_export.__doc__,
    params=[
        click.Argument(["folder"], metavar="DIR", type=click.Path()),
        click.Argument(["target"], metavar="TARGET", type=click.Path()),
        HeadedOption(
            ["--as"],
            type=click.Choice(["peft", "model", "text", "messages", "promptfoo", "dspy"]),
            default="peft",
            help="A PEFT adapter, the fine-tuned model, or a text prompt in one of four forms.  [default: peft]",
        ),
        HeadedOption(
            ["--backbone"],
            type=BackboneType(),
            metavar="NAME",
            help="Where the backbone is now.  [default: as recorded]",
        ),
        *device_options(),
    ],
    epilog="\b\nExamples\n  cuelight export runs/mine adapter\n"
    "  cuelight export runs/tuned model --as model\n"
    "  cuelight export runs/quine promptfoo-folder --as promptfoo\n"
    "  cuelight tune in-context --backbone model --data other.csv",
)
