"""``cuelight completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cuelight.errors import ConfigError, nearest

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", metavar="bash|zsh|fish")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, methods, options and built-in names.

    \b
    bash, in ~/.bashrc:   eval "$(cuelight completion bash)"
    zsh, in ~/.zshrc:     eval "$(cuelight completion zsh)"
    fish:                 cuelight completion fish > ~/.config/fish/completions/cuelight.fish
    """
    kind = get_completion_class(shell) if shell in _SHELLS else None
    if kind is None:
        raise ConfigError(f"shell: '{shell}' is unknown{nearest(shell, _SHELLS)}; give bash, zsh or fish")
    click.echo(kind(ctx.find_root().command, {}, "cuelight", "_CUELIGHT_COMPLETE").source())
