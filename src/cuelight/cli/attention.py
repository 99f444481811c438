"""``cuelight attention RUN PICTURE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuelight.cli.common import BackboneType, device_options, say
from cuelight.cli.options import HeadedCommand, HeadedOption

__all__ = ["attention"]


def _attention(folder: str, picture: str, output: str | None, **params: Any) -> None:
    """Draw what a learned prompt looks at in a picture, as a PNG file.

    DIR is the --output of a run of a method that puts tokens into the image tower: vpt, ivlp, maple and so on.  Shown
    are the class token's attention without and with the prompt, and the prompt's by layer and by token.
    """
    import cuelight
    from cuelight.attention import attention_maps

    prompt = cuelight.load(
        folder,
        backbone=params["backbone"],
        device=params["device"],
        dtype=params["dtype"],
        force=params["force"],
    )
    maps = attention_maps(prompt, Path(picture))
    target = Path(output) if output else Path(f"{Path(picture).stem}-attention.png")
    title = f"{prompt.method.card.name} on {prompt.method.backbone.id}"
    maps.plot(target, title)
    say(f"{maps.answer}  {maps.chance:.4f}", str(target))


attention = HeadedCommand(
    "attention",
    callback=_attention,
    help=_attention.__doc__,
    params=[
        click.Argument(["folder"], metavar="DIR", type=click.Path()),
        click.Argument(["picture"], metavar="PICTURE", type=click.Path()),
        HeadedOption(
            ["--output"],
            type=click.Path(),
            metavar="FILE",
            help="PNG file to write.  [default: PICTURE-attention.png here]",
        ),
        HeadedOption(
            ["--backbone"],
            type=BackboneType(),
            metavar="NAME",
            help="Where the backbone is now.  [default: as recorded]",
        ),
        HeadedOption(["--force"], is_flag=True, help="Take a backbone with other weights all the same."),
        *device_options(),
    ],
    epilog="\b\nExample\n  cuelight attention runs/maple cat.jpg --output map.png",
)
