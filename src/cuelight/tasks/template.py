"""Templates: how a row of data becomes the text a model reads.

A template is a line with fields, ``Review: {text}\\nSentiment:``.  Fields are ``{text}``, ``{text_b}``
(pairs), ``{options}`` (the label words, separated by commas) and, for masked language models, ``{mask}``
where the answer belongs.  The answer of a causal or encoder-decoder model always follows the template.
"""

from __future__ import annotations

import string
from collections.abc import Mapping

from cuelight.backbones.backbone import Kind
from cuelight.errors import ConfigError

__all__ = ["check_template", "default_template", "render"]

_FIELDS = ("text", "text_b", "options", "mask")


def default_template(kind: Kind, task: str, pairs: bool) -> str:
    """A plain template for a backbone's kind and a task's kind."""
    text = "Text: {text}\nSecond text: {text_b}" if pairs else "Text: {text}"
    bare = "{text} {text_b}" if pairs else "{text}"
    if kind in ("text-encoder",):
        return bare
    if kind == "masked":
        return bare + " Label: {mask}."
    if task == "generation":
        return bare if kind == "seq2seq" else text.replace("Text", "Input") + "\nOutput:"
    return text + ("\nLabels:" if task == "multilabel" else "\nLabel:")


def check_template(template: str, kind: Kind, pairs: bool) -> str:
    """``template`` if it fits, with the escapes of a shell (``\\n``) resolved.

    Raises:
        ConfigError: an unknown or missing field, a brace out of place, or text behind the answer's place.
    """
    template = template.replace("\\n", "\n").replace("\\t", "\t")
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(
            f"template: {error}; write fields as {{text}} and literal braces as {{{{ }}}}"
        ) from error
    fields = [name for name, _, _ in parts]
    for name, form, conversion in parts:
        if form or conversion:
            raise ConfigError(f"template: '{{{name}}}' takes no format; write {{{name}}} alone")
        if name not in _FIELDS:
            allowed = ", ".join("{" + f + "}" for f in _FIELDS)
            raise ConfigError(f"template: '{{{name}}}' is no field; use {allowed}")
    if "text" not in fields:
        raise ConfigError("template: has no {text}; put it where the text belongs")
    if "text_b" in fields and not pairs:
        raise ConfigError(
            "template: has {text_b} but the data has one text column; give --text-b or drop the field"
        )
    if kind == "masked" and fields.count("mask") != 1:
        raise ConfigError(
            "template: a masked language model needs exactly one {mask}, where the answer belongs"
        )
    if kind != "masked" and "mask" in fields:
        raise ConfigError(
            "template: {mask} is for masked language models; the answer follows the template here"
        )
    return template if kind in ("masked", "text-encoder") else template.rstrip(" ")


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill the fields of ``template``; braces inside the values stay as they are."""
    return template.format(**values)
