"""PEFT loads what cuelight exports, cuelight reads what PEFT saved, and both give the same scores."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import cuelight
from cuelight.artifact import Prompt
from cuelight.backbones.backbone import Backbone, load_backbone
from cuelight.config import build
from cuelight.errors import ArtifactError, ConfigError, CuelightError
from cuelight.methods.base import Method, get_method
from cuelight.prompts.conditioning import Condition, TextBatch, answer_logits
from cuelight.tasks.text import TextTask

warnings.filterwarnings("ignore", module="peft|transformers")
CLASSES = ("bad", "good")
ROWS = [
    {"text": "a warm and funny film about two friends", "label": 1},
    {"text": "dull", "label": 0},
    {"text": "I left before the end of it", "label": 0},
]
KINDS = {"minimind2-26m": "CAUSAL_LM", "flan-t5-small": "SEQ_2_SEQ_LM"}
OPTIONS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"length": 5},
    "prefix-tuning": {"length": 5},
    "p-tuning": {"length": 5, "hidden": 16},
    "lora": {"rank": 3, "alpha": 7},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two busy processes on two cores wait for each other's threads for most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(KINDS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(request.param, device="cpu", progress=False)


def learned(name: str, backbone: Backbone, **options: Any) -> Method:
    """A method whose every learned tensor is away from its start."""
    task = TextTask(backbone, "classification", CLASSES)
    kind = get_method(name)
    method = kind(backbone, task, build(kind.Config, {**OPTIONS.get(name, {}), **options}))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return method.eval()


def ours(method: Method) -> torch.Tensor:
    """Scores of the whole vocabulary at every answer token, in the order of `ROWS`."""
    seen: list[torch.Tensor] = []

    def record(batch: TextBatch, condition: Condition) -> Any:
        seen.append(answer_logits(method.backbone, batch, condition)[0])
        return torch.zeros(())

    method.task.loss = record  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            method.loss(method.task.collate(method.task.encode(ROWS)))
    finally:
        del method.task.loss
    return seen[0]


def theirs(model: Any, task: TextTask) -> torch.Tensor:
    """The same scores from a PEFT model, row by row without padding."""
    scores = []
    for item in task.encode(ROWS):
        text, answer = torch.tensor([item.text]), torch.tensor([item.answer])
        with torch.no_grad():
            if task.backbone.kind == "seq2seq":
                mask = torch.ones_like(text)
                start = torch.cat([torch.zeros(1, 1, dtype=torch.long), answer[:, :-1]], 1)
                logits = model(input_ids=text, attention_mask=mask, decoder_input_ids=start).logits[0]
            else:
                ids = torch.cat([text, answer], 1)
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
                logits = logits[-answer.shape[1] - 1 : -1]
        scores.append(logits)
    return torch.cat(scores)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_peft_loads_what_we_export(name: str, backbone: Backbone, tmp_path: Path) -> None:
    method = learned(name, backbone)
    frozen = ours(get_method("zero-shot")(backbone, method.task, build(get_method("zero-shot").Config, {})))
    expected = ours(method)
    folder = Prompt(method).export_peft(tmp_path / "adapter")
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    model = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval()
    same(theirs(model, method.task), expected)
    assert (expected - frozen).abs().max() > 0.01
    again = cuelight.import_peft(folder, backbone=backbone, classes=CLASSES)
    assert again.method.card.name == name
    same(ours(again.method), expected)
    again.save(tmp_path / "artifact")
    same(ours(cuelight.load(tmp_path / "artifact", backbone=backbone).method), expected)


def peft_config(name: str, backbone: Backbone) -> Any:
    task = KINDS[backbone.id]
    if name == "prompt-tuning":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)
    if name == "p-tuning":
        return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=16)
    if name == "prefix-tuning":  # PEFT takes hidden size / heads for the width of a head, which T5 has not
        shape = {"token_dim": 384, "num_attention_heads": 6} if backbone.kind == "seq2seq" else {}
        return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4, **shape)
    return peft.LoraConfig(task_type=task, r=4, lora_alpha=3)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_we_read_what_peft_saved(name: str, backbone: Backbone, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = peft.get_peft_model(copy.deepcopy(backbone.model), peft_config(name, backbone)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(tmp_path))
    prompt = cuelight.import_peft(tmp_path, backbone=backbone, classes=CLASSES)
    assert prompt.method.card.name == name
    same(ours(prompt.method), theirs(model, prompt.method.task))
    assert prompt.predict(["a fine film"])[0] in CLASSES


def test_the_projected_prefix_and_the_lstm_are_exported_as_what_they_write(tmp_path: Path) -> None:
    backbone = load_backbone("minimind2-26m", device="cpu", progress=False)
    for name, options in (
        ("prefix-tuning", {"project": True, "init": "normal", "hidden": 8}),
        ("p-tuning", {"encoder": "LSTM"}),
    ):
        method = learned(name, backbone, **options)
        folder = Prompt(method).export_peft(tmp_path / name)
        model = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder)).eval()
        same(theirs(model, method.task), ours(method))
        same(ours(cuelight.import_peft(folder, backbone=backbone, classes=CLASSES).method), ours(method))


def test_a_prompt_for_a_masked_model(tmp_path: Path) -> None:
    real = load_backbone("minilm-l6", device="cpu", progress=False)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(real.tokenizer), **size))
    backbone = Backbone("tiny", model, kind="masked", tokenizer=real.tokenizer)
    method = learned("prompt-tuning", backbone)
    folder = Prompt(method).export_peft(tmp_path / "a")
    item = method.task.encode(ROWS)[0]
    text = torch.tensor([item.text])
    theirs_ = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()
    logits = theirs_(input_ids=text, attention_mask=torch.ones_like(text)).logits[0]
    where = 5 + item.text.index(real.tokenizer.mask_token_id)
    same(logits[where][None], ours(method)[:1])


def test_generation_needs_no_classes(backbone: Backbone, tmp_path: Path) -> None:
    Prompt(learned("prompt-tuning", backbone)).export_peft(tmp_path)
    prompt = cuelight.import_peft(tmp_path, backbone=backbone, task="generation", max_new_tokens=2)
    assert isinstance(prompt.predict(["hello"])[0], str)


@pytest.fixture(scope="module")
def minimind() -> Backbone:
    return load_backbone("minimind2-26m", device="cpu", progress=False)


def line(error: pytest.ExceptionInfo[CuelightError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_peft_does_not_have(minimind: Backbone, tmp_path: Path) -> None:
    for name, options in (("zero-shot", {}), ("dept", {"match_length": 20, "length": 5})):
        with pytest.raises(ArtifactError, match="PEFT has no such method") as caught:
            Prompt(learned(name, minimind, **options)).export_peft(tmp_path / "a")
        assert line(caught).startswith(name)
    method = learned("prefix-tuning", minimind)
    config = minimind.model.config
    config.head_dim = 32  # as PEFT would read it; the layers keep 64
    try:
        with pytest.raises(ArtifactError, match="PEFT can not express it for llama") as caught:
            Prompt(method).export_peft(tmp_path / "a")
    finally:
        config.head_dim = 64
    line(caught)
    assert not (tmp_path / "a").exists()


def test_folders_that_are_no_adapter(minimind: Backbone, tmp_path: Path) -> None:
    def read(folder: Path, **options: Any) -> Any:
        return cuelight.import_peft(folder, **{"backbone": minimind, "classes": CLASSES, **options})

    with pytest.raises(ArtifactError, match=r"has no adapter_config\.json"):
        read(tmp_path / "nothing")
    folder = tmp_path / "a"
    Prompt(learned("prompt-tuning", minimind)).export_peft(folder)
    for change, error, says in (
        ({"classes": ()}, ConfigError, "classes: a PEFT adapter does not keep them"),
        ({"task": "clasification"}, ConfigError, "task: 'clasification' is unknown"),
        ({"templat": "{text}"}, ConfigError, r"templat: no such option \(did you mean 'template'\?\)"),
        ({"backbone": "flan-t5-small"}, ArtifactError, ""),
    ):
        if change.get("backbone") == "flan-t5-small":  # the width is the same, so the prompt fits
            continue
        with pytest.raises(error, match=says) as caught:
            read(folder, **change)
        line(caught)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is damaged") as caught:
        read(folder)
    line(caught)
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(ArtifactError, match="lacks 'prompt_embeddings'") as caught:
        read(folder)
    line(caught)
    save_file({"prompt_embeddings": torch.zeros(5, 9)}, weights)
    with pytest.raises(ArtifactError, match=r"is \[5, 9\], prompt-tuning on minimind2-26m needs \[5, 512\]"):
        read(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ArtifactError, match="a pickle, which is not read") as caught:
        read(folder)
    line(caught)
    weights.write_bytes(whole)
    card = folder / "adapter_config.json"
    text = card.read_text()
    for damaged in (text[: len(text) // 2], text.replace("PROMPT_TUNING", "PROMPT_TUNIN"), "[]"):
        card.write_text(damaged)
        with pytest.raises(ArtifactError, match=r"adapter_config\.json is damaged or of a type") as caught:
            read(folder)
        line(caught)
    ia3 = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[])
    ia3.save_pretrained(str(folder))
    with pytest.raises(ArtifactError, match="is of type IA3, which no method reads") as caught:
        read(folder)
    line(caught)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_dora": True}, "use_dora=True goes beyond"),
        ({"use_rslora": True}, "use_rslora=True goes beyond"),
        ({"bias": "all"}, "bias='all' goes beyond"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern=.* goes beyond"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* goes beyond"),
        ({"init_lora_weights": "pissa"}, "changes the backbone too"),
    ],
)
def test_a_lora_beyond_ours_is_refused(
    minimind: Backbone, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    folder = Prompt(learned("lora", minimind)).export_peft(tmp_path / "a")
    config = peft.PeftConfig.from_pretrained(str(folder))
    for name, value in options.items():
        setattr(config, name, value)
    config.save_pretrained(str(folder))
    with pytest.raises(ArtifactError, match=says) as caught:
        cuelight.import_peft(folder, backbone=minimind, classes=CLASSES)
    assert line(caught).startswith(f"PEFT adapter {folder}: ")


def test_a_lora_in_some_layers_only(minimind: Backbone, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["down_proj"],
        layers_to_transform=[1, 3],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(copy.deepcopy(minimind.model), config).eval()
    model.save_pretrained(str(tmp_path))
    prompt = cuelight.import_peft(tmp_path, backbone=minimind, classes=CLASSES)
    assert len(prompt.method.state_dict()) == 4
    same(ours(prompt.method), theirs(model, prompt.method.task))


def test_export_replaces_its_own_files_only(minimind: Backbone, tmp_path: Path) -> None:
    prompt = Prompt(learned("prompt-tuning", minimind))
    folder = prompt.export_peft(tmp_path / "a")
    first = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    with torch.no_grad():
        prompt.method.prompt += 1  # type: ignore[operator]
    prompt.export_peft(folder)
    second = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    torch.testing.assert_close(second, first + 1)
    assert json.loads((folder / "adapter_config.json").read_text())["inference_mode"] is True
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds notes\.txt, no PEFT adapter"):
        prompt.export_peft(folder)
