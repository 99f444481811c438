"""Load a frozen pretrained model and say what it is.

A backbone is any model transformers loads, named by a hub id or a folder, or one of the small built-in ones.
Everything a method needs to know of it is here: its kind, its towers, its tokenizer, and the head that turns
hidden states into vocabulary scores.  A method never looks inside the model.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from cuelight.backbones import mean_text  # noqa: F401  makes its model type known to transformers
from cuelight.backbones.builtin import BUILTIN, ensure
from cuelight.backbones.dual import Dual
from cuelight.backbones.towers import Tower, find_towers
from cuelight.errors import BackboneError, nearest

__all__ = ["Backbone", "Kind", "load_backbone"]

Kind = Literal[
    "causal", "seq2seq", "masked", "text-encoder", "vision-encoder", "vision-language", "audio", "remote"
]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Backbone:
    """A frozen model with its tokenizer or processor, and what cuelight knows of it.

    Attributes:
        id: what the user called it (built-in name, hub id or folder).
        kind: what it can do; language methods take ``causal``, ``seq2seq`` and some ``masked``.
        model: the transformers model, in evaluation mode, no parameter requiring a gradient.
        tokenizer: for kinds that read text, else ``None``.
        processor: image processor or feature extractor, else ``None``.
        towers: the transformer stacks by name, see `find_towers`.
    """

    def __init__(
        self,
        id: str,
        model: PreTrainedModel,
        *,
        kind: Kind,
        tokenizer: Any = None,
        processor: Any = None,
        folder: Path | None = None,
    ) -> None:
        self.id = id
        self.kind: Kind = kind
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processor = processor
        self.folder = folder
        self.towers = find_towers(model)
        self.memory: dict[Any, Tensor] = {}
        """Frozen features that were computed once, by whatever tells them apart; on the CPU."""

    def __repr__(self) -> str:
        towers = ", ".join(f"{t.name} {t.depth}x{t.width}" for t in self.towers.values())
        return f"Backbone({self.id!r}, {self.kind}, {self.parameters / 1e6:.1f}M, {towers})"

    def copy(self) -> tuple[Backbone, dict[str, nn.Parameter]]:
        """An independent copy whose weights learn, in float32 (bfloat16 would swallow small steps).

        Returns:
            The copy, and its parameters by name: weights that are tied stand there once.
        """
        made = Backbone(self.id, copy.deepcopy(self.model).float(), kind=self.kind, tokenizer=self.tokenizer)
        made.model.requires_grad_(True)
        return made, dict(made.model.named_parameters())

    def twin(self) -> Backbone:
        """The same model in modules of its own, which share all tensors with this one: layers can be put in there."""
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        made = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        return Backbone(self.id, made, kind=self.kind, tokenizer=self.tokenizer)

    @property
    def parameters(self) -> int:
        """How many (distinct) frozen parameters the model has."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.dtype

    @property
    def tower(self) -> Tower:
        """The tower a text prompt is written to: the encoder of an encoder-decoder, else the text tower."""
        for name in ("encoder", "text"):
            if name in self.towers:
                return self.towers[name]
        raise BackboneError(
            f"backbone {self.id}: reads no text (towers: {', '.join(self.towers)}); use a language model"
        )

    @cached_property
    def dual(self) -> Dual | None:
        """The joint space of texts and images; None for models without one."""
        return Dual.of(self.model, self.towers)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights: of their files when loaded from a folder, else of the tensors in memory.

        Files are hashed once and remembered by size and time beside the cache, since a large model takes
        minutes.
        """
        digest = hashlib.sha256()
        files = _weight_files(self.folder) if self.folder else []
        if files:
            for file in files:
                digest.update(_file_hash(file).encode())
        else:
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        return digest.hexdigest()

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence the backbone has positions for, or ``None`` when positions are relative."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not value:
            return None
        # RoBERTa's family starts to count behind the padding row of its table.
        tables = (
            m for m in self.model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == value
        )
        taken = [
            m.padding_idx + 1 for m in tables if m.padding_idx is not None and m is not self.tower.embedding
        ]
        return int(value) - max(taken, default=0)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids ``[..., T]`` to what the text tower's first layer is built from, ``[..., T, width]``."""
        assert self.tower.embedding is not None
        return self.tower.embedding(ids)

    def image_features(self, pixels: Tensor) -> Tensor:
        """What the frozen model makes of pictures ``[B, 3, H, W]``: ``[B, d]``.

        In the joint space and normalised where there is one, else the pooled output of the image tower.
        """
        pixels = pixels.to(self.dtype)
        if self.dual is not None:
            return self.dual.image_features(pixels)
        found = self.model(pixel_values=pixels)
        pooled = getattr(found, "pooler_output", None)
        if pooled is None:  # a classifier, or a model without a pooler: its class token
            base = getattr(self.model, self.model.base_model_prefix, self.model)
            pooled = base(pixel_values=pixels).last_hidden_state[:, 0]
        return pooled.flatten(1).float()

    @contextlib.contextmanager
    def scoring(self, rows: Tensor, columns: Tensor, vocabulary: Tensor | None = None) -> Iterator[None]:
        """Inside, the head scores only positions ``(rows[k], columns[k])`` and the ids in ``vocabulary``.

        The model's ``logits`` are then ``[len(rows), len(vocabulary)]`` instead of ``[batch, length, all]``;
        what the model does after its head (scaling, soft-capping) still happens, since it acts on each score
        alone.
        """
        model = self.model
        head = model.get_output_embeddings()
        if head is None:
            raise BackboneError(
                f"backbone {self.id}: has no language-model head (kind {self.kind}); use a causal, "
                f"seq2seq or masked LM"
            )
        gather = head.register_forward_pre_hook(lambda _, args: (args[0][rows, columns], *args[1:]))
        forward = head.__dict__.get("forward")  # device placement and adapters may have put one there
        extra = getattr(model, "final_logits_bias", None)  # BART's family adds one behind its head
        if vocabulary is not None:
            bias = getattr(head, "bias", None)
            weight, bias = head.weight[vocabulary], None if bias is None else bias[vocabulary]
            head.forward = lambda states: nn.functional.linear(states, weight, bias)
            if extra is not None:
                model.final_logits_bias = extra[:, vocabulary]
        try:
            yield
        finally:
            gather.remove()
            if vocabulary is not None:
                head.__dict__.pop("forward")
                if forward is not None:
                    head.forward = forward
                if extra is not None:
                    model.final_logits_bias = extra


def load_backbone(
    name: Any,
    *,
    device: str = "auto",
    dtype: str = "auto",
    tokenizer: Any = None,
    progress: bool = True,
) -> Backbone:
    """Load a backbone.

    Args:
        name: a built-in name (``cuelight backbones`` lists them), a folder, a hub id, a model already loaded (then
            give ``tokenizer`` too), or what only answers: ``http://host:port/v1#model``, or an `cuelight.lm.LM`.
        device: ``auto`` (cuda, then mps, then cpu), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (float32 on a CPU, else the type the weights were saved in), ``float32``,
            ``bfloat16``, ``float16``.
        tokenizer: overrides the tokenizer that comes with the model.
        progress: show progress while a built-in backbone is fetched.

    Raises:
        BackboneError: not found, not readable, no network, wrong device or dtype, with the remedy.
    """
    if isinstance(name, Backbone):
        wanted = None if device == "auto" else _device(device)
        if wanted is not None and (wanted.type, wanted.index or 0) != (
            name.device.type,
            name.device.index or 0,
        ):
            raise BackboneError(
                f"device: {name.id} is on {name.device} already; give {device} to load_backbone"
            )
        if dtype != "auto" and _dtype(dtype, name.device) != name.dtype:
            raise BackboneError(f"dtype: {name.id} is {name.dtype} already; give {dtype} to load_backbone")
        return name
    from cuelight.backbones.remote import RemoteBackbone, answers_only, is_url

    if answers_only(name) or (isinstance(name, str) and is_url(name)):
        return RemoteBackbone(name)
    place = _device(device)
    if isinstance(name, PreTrainedModel):
        if tokenizer is None:
            raise BackboneError("backbone: a model object needs its tokenizer too; pass tokenizer=...")
        called = name.config.name_or_path or type(name).__name__
        return Backbone(called, name.to(place), kind=_kind(name.config), tokenizer=_padded(tokenizer))
    name = os.fspath(name)
    source, folder = _locate(name, progress)
    torch_dtype = _dtype(dtype, place)
    with _quiet(), _explained(name):
        if folder is None:
            _ask_hub(name)
        config = AutoConfig.from_pretrained(source)
        kind = _kind(config)
        model = _auto_class(kind, config).from_pretrained(source, dtype=torch_dtype, low_cpu_mem_usage=True)
        model = model.to(place)
        text = _load_tokenizer(source) if tokenizer is None and kind not in ("vision-encoder",) else tokenizer
        processor = _load_processor(source, kind)
    if folder is None:
        folder = _snapshot_folder(name)
    if text is None and kind in ("causal", "seq2seq", "masked", "text-encoder"):
        raise BackboneError(
            f"backbone {name}: no tokenizer found in it; pass tokenizer=... or add its tokenizer files"
        )
    return Backbone(name, model, kind=kind, tokenizer=_padded(text), processor=processor, folder=folder)


def _padded(tokenizer: Any) -> Any:
    """A tokenizer with a padding token; where it has none another special one stands in, under a mask."""
    if tokenizer is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _locate(name: str, progress: bool) -> tuple[str, Path | None]:
    """Where transformers should load from, and the folder if there is one on this machine."""
    if name in BUILTIN:
        folder = ensure(name, progress=progress)
        return str(folder), folder
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise BackboneError(
                f"backbone {name}: the folder has no config.json; give a folder saved by save_pretrained"
            )
        return str(path), path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"backbone {name}: no such folder; give a folder, a hub id or one of {', '.join(BUILTIN)}"
        )
    if "/" not in name and nearest(name, BUILTIN):
        raise BackboneError(
            f"backbone {name}: unknown{nearest(name, BUILTIN)}; built in are {', '.join(BUILTIN)}"
        )
    return name, None


def _ask_hub(name: str) -> None:
    """Ask the hub once whether it knows ``name``; without a network, loading would retry for half a minute."""
    import huggingface_hub

    if _snapshot_folder(name) is None and not huggingface_hub.constants.HF_HUB_OFFLINE:
        huggingface_hub.HfApi().model_info(name, timeout=10)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises for a backbone that can not be loaded into one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BackboneError(
            f"backbone {name}: does not fit into memory; choose a smaller one or --dtype bfloat16"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())
        offline = any(
            s in text.lower()
            for s in ("connect", "offline", "resolve", "couldn't reach", "network", "max retries")
        )
        if offline:
            raise BackboneError(
                f"backbone {name}: not on this machine and the model hub can not be reached; go "
                f"online, give a local "
                f"folder, or use a built-in one ({', '.join(BUILTIN)})"
            ) from error
        raise BackboneError(
            f"backbone {name}: can not be loaded ({type(error).__name__}: {text[:160]}); check the "
            f"name or folder"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading is chatty about things a user can not act on."""
    logger = logging.getLogger("transformers")
    level, progress = logger.level, os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    from transformers.utils import logging as chatter

    bar = chatter.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bar:
            chatter.enable_progress_bar()
        if progress is not None:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = progress


def _kind(config: PreTrainedConfig) -> Kind:
    """What a model is for: by the class it was saved as, else by the classes its type has."""
    saved = (config.architectures or [""])[0]
    if config.is_encoder_decoder:
        speech = type(config).model_type in modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
        return "audio" if speech else "seq2seq"
    if saved.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if saved.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked"
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return "vision-language"
    type_ = config.model_type
    if type_ in modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES:
        return "audio"
    if type_ in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "vision-encoder"
    if hasattr(config, "image_size") and not hasattr(config, "vocab_size"):
        return "vision-encoder"
    if not saved and type_ in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        bidirectional = type_ in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return "text-encoder" if bidirectional else "causal"
    return "text-encoder"


def _auto_class(kind: Kind, config: PreTrainedConfig) -> Any:
    import transformers

    if kind == "audio":
        return transformers.AutoModelForSpeechSeq2Seq if config.is_encoder_decoder else transformers.AutoModel
    if kind == "vision-encoder":  # with the head it was saved with: a projection, or a classifier's rows
        return getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
    return {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "masked": transformers.AutoModelForMaskedLM,
    }.get(kind, transformers.AutoModel)


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        return None


def _load_processor(source: str, kind: Kind) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    if kind not in ("vision-encoder", "vision-language", "audio"):
        return None
    loader = AutoFeatureExtractor if kind == "audio" else AutoImageProcessor
    try:
        return loader.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackboneError(
            f"device: '{name}' is not a device; give auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise BackboneError(
            f"device: '{name}' is not on this machine ({torch.cuda.device_count()} GPUs); give cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackboneError("device: 'mps' is not on this machine; give cpu or auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise BackboneError(f"device: '{name}' is not supported; give auto, cpu, cuda, cuda:1 or mps")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in _DTYPES:
        raise BackboneError(
            f"dtype: '{name}' is unknown{nearest(name, _DTYPES)}; give auto, {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def _snapshot_folder(name: str) -> Path | None:
    """The folder of the hub's local cache that holds ``name``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _weight_files(folder: Path) -> list[Path]:
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def _file_hash(file: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change."""
    from cuelight.cache import cache_dir, sha256_of

    status = file.resolve().stat()
    key = hashlib.sha256(f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:24]
    memory = cache_dir() / "hashes" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads(memory.read_text())["sha256"])
    value = sha256_of(file)
    with contextlib.suppress(OSError):  # a read-only cache only costs time
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps({"file": file.name, "sha256": value}))
    return value
