"""``cuelight serve``: learned prompts on one backbone, over HTTP."""

from __future__ import annotations

import socket
from typing import Any

import click

from cuelight.cli.common import BackboneType, device_options, say
from cuelight.cli.options import HeadedCommand, HeadedOption
from cuelight.errors import ConfigError

__all__ = ["serve"]


@click.pass_context
def _serve(ctx: click.Context, **params: Any) -> None:
    """Serve learned prompts on one backbone to OpenAI's clients.

    BACKBONE is loaded once; every --prompt NAME=DIR names what 'cuelight tune' wrote to DIR.  A request's "model" picks
    the prompt, the backbone's own name the model without one.  Requests of all prompts share batches.
    """
    try:
        import uvicorn

        from cuelight.serving.server import application
    except ImportError as error:
        raise ConfigError(
            f"serve: needs {error.name}, which is not installed; pip install 'cuelight[serve]'"
        ) from error
    from cuelight.serving.engine import Engine
    from cuelight.serving.pool import Pool

    named: dict[str, str] = {}
    for entry in params["prompt"]:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise ConfigError(f"prompt: '{entry}' is not NAME=DIR; give e.g. --prompt film=runs/film")
        if name in named:
            raise ConfigError(f"prompt: '{name}' is given twice; give each prompt a name of its own")
        named[name] = folder
    host, port = params["host"], params["port"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port: {host}:{port} can not be listened on ({error.strerror}); give another --port"
            ) from error
    pool = Pool(params["backbone"], named, device=params["device"], dtype=params["dtype"])
    if pool.backbone.id in named:
        raise ConfigError(f"prompt: '{pool.backbone.id}' is the backbone's own name; give another")
    engine = Engine(pool, max_batch=params["max_batch"], max_waiting=params["max_waiting"])
    app = application(pool, engine, api_key=params["api_key"], time_limit=params["time_limit"])
    address = f"http://{host}:{port}/v1"
    shown = ", ".join([*named, pool.backbone.id])
    body = f'{{"model": "{next(iter(named), pool.backbone.id)}", "messages": [{{"role": "user", "content": "..."}}]}}'
    say(f"serving {shown} at {address}  (Ctrl-C stops)")
    say(f"try: curl {address}/chat/completions -H 'content-type: application/json' -d '{body}'")
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning")
    finally:
        engine.close()


serve = HeadedCommand(
    name="serve",
    callback=_serve,
    help=_serve.__doc__,
    params=[
        click.Argument(["backbone"], type=BackboneType(), metavar="BACKBONE"),
        HeadedOption(
            ["--prompt"],
            multiple=True,
            metavar="NAME=DIR",
            help="A learned prompt; give as many as you like.",
        ),
        HeadedOption(
            ["--host"], default="127.0.0.1", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]"
        ),
        HeadedOption(
            ["--port"],
            type=click.IntRange(1, 65535),
            default=8000,
            metavar="INT",
            help="Port.  [default: 8000]",
        ),
        HeadedOption(
            ["--max-batch"],
            type=click.IntRange(1),
            default=16,
            metavar="INT",
            help="Rows at a time.  [default: 16]",
        ),
        HeadedOption(
            ["--max-waiting"],
            type=click.IntRange(1),
            default=256,
            metavar="INT",
            help="Requests that may wait; more get a 429.  [default: 256]",
        ),
        HeadedOption(
            ["--time-limit"],
            type=click.FloatRange(min=1),
            default=300.0,
            metavar="SECONDS",
            help="Longest time for a request.  [default: 300]",
        ),
        HeadedOption(["--api-key"], metavar="KEY", help="Only requests that carry it are answered."),
        *device_options(),
    ],
)
