"""What a run saves: a folder of two files, kilobytes, no pickle.

``cuelight.json`` says which method on which backbone (by the hash of its weights), the task, the data it saw,
the versions and the figures; ``prompt.safetensors`` holds the learned tensors, or ``prompt.txt`` a text
prompt.  The folder is written whole or not at all, and every byte of it is checked when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cuelight.backbones.backbone import load_backbone
from cuelight.cache import atomic_folder, sha256_of
from cuelight.config import build
from cuelight.errors import ArtifactError, ConfigError, DataError
from cuelight.evaluation.evaluate import evaluate, predict_items
from cuelight.methods.base import Method, get_method
from cuelight.tasks.kinds import task_from_dict
from cuelight.tasks.predictions import Predictions

__all__ = ["FILES", "FORMAT", "Prompt", "load", "read_card", "restore", "versions", "writing"]

FORMAT = 1
FILES = _CARD, _TENSORS, _TEXT = "cuelight.json", "prompt.safetensors", "prompt.txt"
_OWN = (
    "format",
    "method",
    "config",
    "task",
    "backbone",
    "trainable",
    "files",
    "versions",
    "created",
    "checksum",
)
"""What the card says of the artifact itself; all else in it is the run's record."""


class Prompt:
    """A learned prompt on its backbone, ready to answer.

    Attributes:
        method: the method that holds what was learned.
        record: what ``cuelight.json`` says besides the method, task and backbone (data, figures, versions).
    """

    def __init__(self, method: Method, record: Mapping[str, Any] | None = None) -> None:
        self.method = method
        self.record = dict(record or {})

    def __repr__(self) -> str:
        method = self.method
        return f"Prompt({method.card.name} on {method.backbone.id}, {method.trainable} trained values)"

    def predict(
        self,
        texts: Sequence[Any],
        *,
        probabilities: bool = False,
        batch_size: int = 32,
        progress: str | None = None,
    ) -> list[Any]:
        """Answers for texts, pairs of texts, or dictionaries with ``text`` (``text_b``) and the template's columns.

        A method that reads pictures takes paths, encoded pictures or PIL images instead.

        Returns:
            Class names, lists of names (multilabel), or generated texts; with ``probabilities`` a dictionary
            ``{"answer": ..., "probabilities": {class: chance}}`` for each text.

        Raises:
            DataError: a text that is not a string, or empty; a picture that can not be read.
        """
        if isinstance(texts, str):
            what = "picture" if self.method.task.modality == "image" else "text"
            raise DataError(f"{what}s: is one string; give a list")
        rows = [self.method.task.row(k, text) for k, text in enumerate(texts)]
        if not rows:
            return []
        items = self.method.task.encode(rows, answers=False)
        found: Predictions = predict_items(self.method, items, batch_size=batch_size, progress=progress)
        if not probabilities:
            return found.answers
        if found.probabilities is None:
            raise DataError(
                f"probabilities: {self.method.card.name} generates its answers on this task and has none"
            )
        names = self.method.task.classes
        tables = [dict(zip(names, row, strict=True)) for row in found.probabilities.tolist()]
        return [{"answer": a, "probabilities": p} for a, p in zip(found.answers, tables, strict=True)]

    def evaluate(
        self, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 32, progress: str | None = None
    ) -> dict[str, float]:
        """The task's figures on labelled rows, as `cuelight.data.read` makes them.

        Raises:
            DataError: there are no rows.
        """
        items = self.method.task.encode(list(rows))
        if not items:
            raise DataError("rows: there are none to measure on")
        return evaluate(self.method, items, batch_size=batch_size, progress=progress)[0]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the artifact to ``folder``, whole or not at all; an artifact already there is replaced.

        Raises:
            ArtifactError: ``folder`` holds other files too, or can not be written; what is there stays.
        """
        with writing(Path(folder), set(FILES), "artifact") as new:
            self.write(new)
        return Path(folder)

    def export_peft(self, folder: str | os.PathLike[str]) -> Path:
        """Write a PEFT adapter, see `cuelight.peft_bridge.export_peft`."""
        from cuelight.peft_bridge import export_peft

        return export_peft(self, folder)

    def export_model(self, folder: str | os.PathLike[str]) -> Path:
        """Write the fine-tuned backbone itself, for methods that have one: a folder that transformers loads.

        It is an ordinary ``backbone`` of any other method then; a prompt beside the weights is not in it.

        Raises:
            ArtifactError: the method leaves the backbone as it is, or ``folder`` is not empty or not writable.
        """
        tuned = getattr(self.method, "tuned", None)
        if tuned is None:
            raise ArtifactError(
                f"{self.method.card.name}: leaves the backbone as it is; there is no other model to write"
            )
        with writing(Path(folder), set(), "exported model") as new:
            tuned.model.save_pretrained(new)
            tuned.tokenizer.save_pretrained(new)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the artifact's files into an existing folder."""
        method = self.method
        files = {}
        tensors = {name: t.detach().cpu().contiguous() for name, t in method.kept().items()}
        if tensors:
            save_file(tensors, folder / _TENSORS)
            files[_TENSORS] = sha256_of(folder / _TENSORS)
        if method.text is not None:
            (folder / _TEXT).write_bytes(method.text.encode())  # byte for byte, line ends too
            files[_TEXT] = sha256_of(folder / _TEXT)
        card = {
            "format": FORMAT,
            "method": method.card.name,
            "config": method.config.model_dump(mode="json"),
            "task": method.task.to_dict(),
            "backbone": {
                "id": method.backbone.id,
                "kind": method.backbone.kind,
                "sha256": method.backbone.fingerprint,
            },
            "trainable": method.trainable,
            "files": files,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **{name: value for name, value in self.record.items() if name not in _OWN},
        }
        card = json.loads(json.dumps(card))  # as it will be read: the checksum is over that
        card["checksum"] = _checksum(card)
        (folder / _CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(
    folder: str | os.PathLike[str],
    *,
    backbone: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    force: bool = False,
    tokenizer: Any = None,
) -> Prompt:
    """Load an artifact on the backbone it names, or on ``backbone`` if its weights are the same.

    Args:
        folder: what `Prompt.save` or ``cuelight tune`` wrote.
        backbone: where the named backbone is now (folder, hub id, model, or a loaded `Backbone`).
        device, dtype, tokenizer: as for `cuelight.backbones.load_backbone`.
        force: load on a backbone with other weights all the same.

    Raises:
        ArtifactError: no artifact, a damaged or truncated file, or another backbone.
    """
    path = Path(folder)
    card = read_card(path)
    named = card["backbone"]
    host = load_backbone(
        named["id"] if backbone is None else backbone, device=device, dtype=dtype, tokenizer=tokenizer
    )
    if host.fingerprint != named["sha256"] and not force:
        raise ArtifactError(
            f"backbone {host.id}: its weights are not those of {named['id']} that {path} was learned on; "
            "give that backbone, or --force (force=True) to try all the same"
        )
    spec = card["task"]
    try:
        kind = get_method(card["method"])
        config = build(kind.Config, card["config"])
        kind.check(host, spec["kind"], spec.get("modality", "text"))
        task = task_from_dict(host, spec)
    except ConfigError as error:
        raise ArtifactError(f"artifact {path}: is of another version or needs a plug-in ({error})") from error
    method = kind(host, task, config)
    restore(method, card, path)
    return Prompt(method, {name: value for name, value in card.items() if name not in _OWN})


def restore(method: Method, card: Mapping[str, Any], path: Path) -> None:
    """Give ``method`` what the artifact at ``path`` holds; ``card`` is its card.

    Raises:
        ArtifactError: the tensors are not of the method's names and shapes.
    """
    source = f"artifact {path}: {_TENSORS}"
    if _TEXT in card["files"]:  # first: it may say how many tensors there are, and of what
        method.load_text((path / _TEXT).read_bytes().decode())
    method.restore(load_file(path / _TENSORS) if _TENSORS in card["files"] else {}, source)


def read_card(path: Path) -> dict[str, Any]:
    """The card of the artifact at ``path``, all its files being there and undamaged.

    Raises:
        ArtifactError: names the file that is not.
    """
    if not path.is_dir():
        raise ArtifactError(
            f"artifact {path}: no such folder; give a folder that 'cuelight tune' or .save() wrote"
        )
    try:
        card = json.loads((path / _CARD).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        wrote = "give a folder that 'cuelight tune' or .save() wrote"
        raise ArtifactError(f"artifact {path}: has no {_CARD}; {wrote}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"artifact {path}: {_CARD} is damaged or truncated; {_AGAIN}") from error
    version_ = card.get("format") if isinstance(card, dict) else None
    if isinstance(version_, int) and version_ > FORMAT:
        raise ArtifactError(
            f"artifact {path}: {_CARD} has format {version_}, this cuelight reads {FORMAT}; upgrade cuelight"
        )
    if version_ != FORMAT or card.get("checksum") != _checksum(card):
        raise ArtifactError(
            f"artifact {path}: {_CARD} is damaged or was edited (its checksum differs); {_AGAIN}"
        )
    for name, digest in card["files"].items():
        try:
            found = sha256_of(path / name)
        except FileNotFoundError as error:
            raise ArtifactError(f"artifact {path}: {name} is missing; copy the whole folder again") from error
        if found != digest:
            raise ArtifactError(
                f"artifact {path}: {name} is damaged or truncated (its checksum differs); {_AGAIN}"
            )
    return card


_AGAIN = "copy it again or train again"


@contextlib.contextmanager
def writing(target: Path, names: set[str], what: str) -> Iterator[Path]:
    """An empty folder that takes the place of ``target`` when all went well; only ``names`` may be there now.

    Raises:
        ArtifactError: ``target`` holds other files, or can not be written; it is as it was then.
    """
    if target.exists():
        others = sorted({p.name for p in target.iterdir()} - names) if target.is_dir() else [target.name]
        if others:
            raise ArtifactError(f"output {target}: holds {others[0]}, no {what}; choose another folder")
    try:
        with atomic_folder(target) as new:
            yield new
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        raise ArtifactError(
            f"output {target}: can not be written ({reason}), and is as it was; "
            "free disk space or choose another folder"
        ) from error


def _checksum(card: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in card.items() if k != "checksum"}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("cuelight", "torch", "transformers", "peft", "accelerate", "datasets")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}
