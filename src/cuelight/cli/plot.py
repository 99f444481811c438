"""``cuelight plot``."""

from __future__ import annotations

from pathlib import Path

import click

from cuelight.cli.common import say
from cuelight.errors import ArtifactError

__all__ = ["plot"]


@click.command()
@click.argument("folder", type=click.Path(), metavar="DIR")
@click.option(
    "--output", type=click.Path(), metavar="FILE", help="PNG file to write.  [default: beside what it shows]"
)
def plot(folder: str, output: str | None) -> None:
    """Draw the training curve of a run, or the figure of a comparison or a protocol, as a PNG file."""
    place = Path(folder)
    if not place.is_dir():
        raise ArtifactError(f"folder {place}: no such folder; give the --output of a run or a comparison")
    if (place / "table.json").exists():
        from cuelight.comparison import Comparison
        from cuelight.protocols import ProtocolResult

        target = Path(output) if output else place / "plot.png"
        table = place / "table.json"
        kind = ProtocolResult if '"protocol"' in table.read_text(encoding="utf-8") else Comparison
        kind.read(table).plot(target)
    else:
        from cuelight.evaluation.plots import plot_training

        target = Path(output) if output else place / "training" / "curve.png"
        plot_training(place, target, place.name)
    say(str(target))
