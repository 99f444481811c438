"""Exchange learned prompts with PEFT: folders that ``PeftModel.from_pretrained`` loads, and those it saved.

Only files are handled here.  What a method looks like to PEFT is said by the method, in `Method.to_peft` and
`Method.from_peft`; its card names the PEFT type.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuelight.errors import ArtifactError

if TYPE_CHECKING:
    from cuelight.artifact import Prompt
    from cuelight.tasks.text import TaskKind

__all__ = ["export_peft", "import_peft"]

_CONFIG, _TENSORS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def export_peft(prompt: Prompt, folder: str | os.PathLike[str]) -> Path:
    """Write ``prompt`` as a PEFT adapter: ``PeftModel.from_pretrained(model, folder)`` then answers alike.

    Template, label words and classes are not part of it, since PEFT has no place for them.

    Raises:
        ArtifactError: PEFT does not know the method or can not express it on this backbone, or ``folder``
            holds other files.
    """
    from safetensors.torch import save_file

    from cuelight.artifact import writing

    method = prompt.method
    config, tensors = method.to_peft()
    config.task_type = _TASK_TYPES.get(method.backbone.kind, "FEATURE_EXTRACTION")
    config.base_model_name_or_path = method.backbone.model.name_or_path or method.backbone.id
    config.inference_mode = True
    with writing(Path(folder), {_CONFIG, _TENSORS}, "PEFT adapter") as new:
        config.save_pretrained(str(new))
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, new / _TENSORS, metadata={"format": "pt"})
    return Path(folder)


def import_peft(
    folder: str | os.PathLike[str],
    *,
    backbone: Any = None,
    task: TaskKind = "classification",
    classes: Sequence[str] = (),
    pairs: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    tokenizer: Any = None,
    **options: Any,
) -> Prompt:
    """Read a PEFT adapter (prompt tuning, prefix tuning, P-tuning, LoRA) as a `Prompt`.

    Args:
        folder: what ``PeftModel.save_pretrained`` or `export_peft` wrote.
        backbone: the model it belongs to, by default the one it names.
        task: ``classification``, ``multilabel`` or ``generation``; PEFT does not keep it.
        classes: class names in order, for the first two.
        pairs: whether rows have a second text.
        device, dtype, tokenizer: as for `cuelight.backbones.load_backbone`.
        **options: fields of `TaskConfig`: the ``template`` and ``label_words`` it was trained with, lengths.

    Raises:
        ArtifactError: no adapter, a damaged one, a pickle, another type, or it does not fit the backbone.
    """
    from cuelight.artifact import Prompt
    from cuelight.backbones.backbone import load_backbone
    from cuelight.config import build, route
    from cuelight.errors import ConfigError
    from cuelight.tasks.text import TaskConfig, TextTask

    kinds = ("classification", "multilabel", "generation")
    if task not in kinds:
        raise ConfigError(f"task: '{task}' is unknown; choose one of {', '.join(kinds)}")
    if task != "generation" and len(set(classes)) < 2:
        raise ConfigError(
            "classes: a PEFT adapter does not keep them; give two or more names, or task='generation'"
        )
    path = Path(folder)
    config, tensors = _read(path)
    name = str(getattr(config.peft_type, "value", config.peft_type))
    kind = _method_for(name, path)
    source = config.base_model_name_or_path if backbone is None else backbone
    if not source:
        raise ArtifactError(f"PEFT adapter {path}: names no backbone; give backbone=...")
    host = load_backbone(source, device=device, dtype=dtype, tokenizer=tokenizer)
    kind.check(host, task)
    (chosen,) = route(options, [TaskConfig])
    text_task = TextTask(
        host, task, () if task == "generation" else classes, pairs=pairs, config=build(TaskConfig, chosen)
    )
    try:
        method = kind.from_peft(host, text_task, config, tensors)
    except KeyError as error:
        raise ArtifactError(
            f"PEFT adapter {path}: lacks {error}; it was not saved by PEFT, or is damaged"
        ) from error
    except ArtifactError as error:
        raise ArtifactError(str(error).replace("PEFT adapter:", f"PEFT adapter {path}:", 1)) from error
    return Prompt(method, {"imported": {"from": "peft", "type": name}})


def _read(path: Path) -> tuple[Any, Any]:
    from peft import PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (path / _CONFIG).is_file():
        raise ArtifactError(
            f"PEFT adapter {path}: has no {_CONFIG}; give a folder that save_pretrained wrote"
        )
    if not (path / _TENSORS).is_file():
        why = "is a pickle, which is not read; save it again with safe_serialization=True"
        missing = f"{_PICKLE} {why}" if (path / _PICKLE).exists() else f"{_TENSORS} is missing"
        raise ArtifactError(f"PEFT adapter {path}: {missing}")
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"PEFT adapter {path}: {_CONFIG} is damaged or of a type this PEFT lacks"
        ) from error
    try:
        return config, load_file(path / _TENSORS)
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"PEFT adapter {path}: {_TENSORS} is damaged or truncated") from error


def _method_for(name: str, path: Path) -> Any:
    """The method whose card names the PEFT type ``name``; the cards are the table."""
    from cuelight.methods.base import get_method, method_names

    known = []
    for method in method_names():
        kind = get_method(method)
        if kind.card.peft == name:
            return kind
        known += [kind.card.peft] if kind.card.peft else []
    raise ArtifactError(
        f"PEFT adapter {path}: is of type {name}, which no method reads; there are {', '.join(known)}"
    )
