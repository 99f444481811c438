"""Text prompts in the forms of other tools: what is sent there is what was sent here, byte for byte.

    prompt = cuelight.text_prompt("runs/mine")            # a run, a promptor's folder, what `search` found, or a string
    prompt.save("messages", "prompt.json")                # OpenAI messages
    prompt.save("promptfoo", "folder")                    # a promptfoo configuration
    prompt.save("dspy", "program.json")                   # a DSPy program, see `cuelight.dspy_bridge`
    prompt.save("text", "prompt.txt")                     # the string itself

In a text prompt ``{text}`` (and the other fields) stand for a row, all other braces are text.  Other tools have marks of
their own; what they would take for one is escaped, and what can not be said there exactly is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuelight.cache import atomic_folder, atomic_write
from cuelight.errors import ArtifactError, ConfigError, nearest

__all__ = ["FORMS", "TextPrompt", "text_prompt"]

FORMS = ("text", "messages", "promptfoo", "dspy")


@dataclass(frozen=True)
class TextPrompt:
    """A string with fields.

    Attributes:
        template: the string.
        fields: names that stand in braces for a row.
        chat: whether it is sent as one turn of a user, or as plain text that a model goes on from.
        model: what answered it, if known.
    """

    template: str
    fields: tuple[str, ...] = ("text",)
    chat: bool = True
    model: str | None = None

    def __post_init__(self) -> None:
        for name in self.fields:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ConfigError(f"fields: '{name}' is no name; other tools take letters, digits and _")
        if not self.template:
            raise ConfigError("prompt: is empty; give the string that was found")

    def sent(self, row: Mapping[str, Any]) -> str:
        """The string that is sent for ``row``.

        Raises:
            ConfigError: the row lacks a field.
        """
        for name in self.fields:
            if name not in row and "{" + name + "}" in self.template:
                raise ConfigError(f"{name}: is missing from the row; the prompt has {{{name}}}")
        return "".join(str(row[part]) if is_field else part for part, is_field in self.parts())

    def messages(self, row: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
        """The conversation that is sent for ``row``, in OpenAI's form; with the fields left open without one."""
        return [{"role": "user", "content": self.template if row is None else self.sent(row)}]

    def parts(self) -> list[tuple[str, bool]]:
        """The string in order: pieces of text, and names of fields (``True``)."""
        if not self.fields:
            return [(self.template, False)]
        pieces = re.split(r"\{(" + "|".join(map(re.escape, self.fields)) + r")\}", self.template)
        return [(piece, bool(k % 2)) for k, piece in enumerate(pieces) if piece or k % 2]

    def save(
        self, form: str, target: str | os.PathLike[str], *, examples: Sequence[Mapping[str, Any]] = ()
    ) -> Path:
        """Write the prompt.

        Args:
            form: ``text`` or ``messages`` (a file), ``promptfoo`` (a folder), ``dspy`` (a file that
                `cuelight.dspy_bridge.Program` loads).
            target: the file or folder; replaced if it is there.
            examples: for promptfoo, rows to test with; a row's ``answer`` is what the output has to contain.

        Raises:
            ConfigError: no such form, or one that can not say the prompt exactly.
        """
        if form not in FORMS:
            raise ConfigError(
                f"form: '{form}' is unknown{nearest(form, FORMS)}; there are {', '.join(FORMS)}"
            )
        path = Path(target)
        if form == "promptfoo":
            return self._promptfoo(path, examples)
        if form == "text":
            text = self.template
        elif form == "messages":
            if not self.chat:
                raise ConfigError(
                    "form: messages is for chats, and this prompt is sent as plain text; take text, promptfoo or dspy"
                )
            text = json.dumps(self.messages(), ensure_ascii=False, indent=1) + "\n"
        else:
            text = json.dumps(self.state(), ensure_ascii=False, indent=1) + "\n"
        with atomic_write(path) as temporary:
            temporary.write_bytes(text.encode())
        return path

    def state(self) -> dict[str, Any]:
        """The prompt as data, from which `cuelight.dspy_bridge.Program` is made."""
        return {"template": self.template, "fields": list(self.fields), "chat": self.chat}

    def _promptfoo(self, folder: Path, examples: Sequence[Mapping[str, Any]]) -> Path:
        """Promptfoo strips text files, so a chat becomes a file of messages and plain text a function."""
        if self.chat:
            name = "prompt.json"
            text = json.dumps([{"role": "user", "content": self._nunjucks()}], ensure_ascii=False, indent=1)
            if self.template.startswith("file://"):
                raise ConfigError("prompt: begins with file://, which promptfoo would take for a file")
        else:
            name = "prompt.cjs"
            marks = re.findall(r"\{[{%#]", "".join(part for part, is_field in self.parts() if not is_field))
            if marks:
                raise ConfigError(
                    f"prompt: holds '{marks[0]}', which promptfoo reads twice in a plain prompt; take another form"
                )
            text = f"module.exports = () => {json.dumps(self._nunjucks())};\n"
        config: dict[str, Any] = {
            "description": "Exported by cuelight",
            "prompts": [f"file://{name}"],
            "providers": [self._provider()],
            "tests": [self._test(row) for row in examples]
            or [{"vars": {name: f"put the {name} here" for name in self.fields}}],
        }
        with atomic_folder(folder) as new:
            (new / name).write_bytes(text.encode())
            # JSON is YAML, and says strings exactly.
            said = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
            (new / "promptfooconfig.yaml").write_bytes(said.encode())
        return folder

    def _nunjucks(self) -> str:
        """The string in promptfoo's template language."""

        def escaped(text: str, before_field: bool) -> str:
            end = "|$" if before_field else ""
            return re.sub(r"\{(?=[{%#]" + end + ")|#(?=})", lambda found: '{{ "' + found[0] + '" }}', text)

        parts = self.parts()
        said = []
        for k, (part, is_field) in enumerate(parts):
            before_field = k + 1 < len(parts) and parts[k + 1][1]
            said.append("{{ " + part + " }}" if is_field else escaped(part, before_field))
        return "".join(said)

    def _provider(self) -> Any:
        """The model as promptfoo calls it; one of this machine is to be served first."""
        kind = "chat" if self.chat else "completion"
        url, _, model = (self.model or "").partition("#")
        if not url.startswith(("http://", "https://")):
            url, model = "http://127.0.0.1:8000/v1", self.model or "model"
        return {
            "id": f"openai:{kind}:{model}",
            "config": {"apiBaseUrl": url, "apiKeyEnvar": "CUELIGHT_API_KEY", "temperature": 0},
        }

    def _test(self, row: Mapping[str, Any]) -> dict[str, Any]:
        self.sent(row)
        test: dict[str, Any] = {"vars": {name: str(row[name]) for name in self.fields if name in row}}
        if "answer" in row:
            test["assert"] = [{"type": "icontains", "value": str(row["answer"])}]
        return test


def text_prompt(
    source: Any, *, fields: Sequence[str] | None = None, chat: bool | None = None, model: str | None = None
) -> TextPrompt:
    """The text prompt that ``source`` holds.

    Args:
        source: a string, what `cuelight.search` found, a loaded `Prompt`, or the folder of a run or of a conversation
            with promptor.
        fields: names that stand in braces for a row; known for a run, else ``text``.
        chat: whether it is sent as a turn of a chat; known for a run, else yes.
        model: what answers it; known for a run.

    Raises:
        ArtifactError: a folder that holds no text prompt.
    """
    known = _known(source)
    return TextPrompt(
        known.template,
        known.fields if fields is None else tuple(fields),
        known.chat if chat is None else chat,
        model or known.model,
    )


def _known(source: Any) -> TextPrompt:
    if isinstance(source, TextPrompt):
        return source
    if isinstance(source, str) and not _is_folder(source):
        return TextPrompt(source)
    if isinstance(source, str | os.PathLike):
        return _of_folder(Path(source))
    method = getattr(source, "method", None)
    if method is not None:  # a loaded artifact
        if method.text is None:
            raise ArtifactError(f"{method.card.name}: learns no text; there is no string to export")
        return _of_task(method.text, method.task.to_dict(), method.backbone.id)
    found = getattr(source, "prompt", None)
    if isinstance(found, str):
        return TextPrompt(found)
    raise ConfigError(
        f"prompt: a {type(source).__name__} holds no text prompt; give a string, a run or what was found"
    )


def _of_folder(folder: Path) -> TextPrompt:
    text = folder / "prompt.txt"
    if (folder / "promptor.json").exists():
        if not text.exists():
            raise ArtifactError(f"{folder}: the conversation has no prompt yet; go on with it first")
        state = json.loads((folder / "promptor.json").read_text(encoding="utf-8"))
        return TextPrompt(
            text.read_bytes().decode(), tuple(state["config"]["fields"]), model=state.get("target")
        )
    from cuelight.artifact import read_card

    card = read_card(folder)
    if "prompt.txt" not in card["files"]:
        raise ArtifactError(
            f"artifact {folder}: {card['method']} learned no text; there is no string to export"
        )
    return _of_task(text.read_bytes().decode(), card["task"], card["backbone"]["id"])


def _of_task(template: str, task: Mapping[str, Any], model: str) -> TextPrompt:
    """A prompt with the fields of its task."""
    if task.get("modality", "text") != "text":
        raise ArtifactError("prompt: is a template of class names for pictures; no language model is sent it")
    fields = (*("text", "text_b")[: 1 + bool(task.get("pairs"))], *task.get("columns", ()))
    return TextPrompt(template, tuple(fields), bool(task["config"].get("chat")), model)


def _is_folder(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and "\0" not in text and Path(text).is_dir()
