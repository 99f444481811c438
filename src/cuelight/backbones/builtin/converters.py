"""From the weight files of a package to a folder that ``transformers.from_pretrained`` loads.

One function per built-in backbone, called with the folder of the files taken out of the packages and
the empty folder to fill.  Each of them proves that every parameter of the transformers model was
filled and that nothing of the source was left over, because a silently random tensor is the one
mistake that a conversion can hide.  Weights are written as float32.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from cuelight.backbones.builtin.onnx_weights import read_onnx

__all__ = [
    "clip_b16_minilm",
    "clip_vision",
    "dino_minilm_clip",
    "dinov2",
    "flan_t5",
    "gemma3",
    "minilm",
    "minilm_mlm",
    "minimind2",
    "run",
    "smollm2",
    "vit_base",
    "whisper",
]

State = dict[str, torch.Tensor]

_LEARNED = Path(__file__).parent / "weights"
"""Small weights that cuelight's own recipes made."""


def run(convert: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Call ``convert`` quietly, on the CPU, and without moving torch's random state.

    A first use must not change the result of a seeded run that comes after it.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
            convert(source, target)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def smollm2(source: Path, target: Path) -> None:
    """SmolLM2-135M-Instruct from GGUF."""
    _from_gguf(_only(source, "*.gguf"), target)


def gemma3(source: Path, target: Path) -> None:
    """Gemma 3 270M from a GGUF file that was cut into parts."""
    whole = source / "gemma3.gguf"
    with whole.open("wb") as out:
        for part in sorted(source.glob("*.gguf.part*")):
            out.write(part.read_bytes())
            part.unlink()
    _from_gguf(whole, target)


def flan_t5(source: Path, target: Path) -> None:
    """Flan-T5 small from its encoder and decoder in 8-bit ONNX."""
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    encoder, _ = read_onnx(source / "encoder.onnx")
    decoder, _ = read_onnx(source / "decoder.onnx")
    state = {name.removeprefix("m."): value for name, value in decoder.items()}
    state |= {re.sub(r"^enc\.", "encoder.", name): value for name, value in encoder.items()}
    if not torch.equal(state.pop("encoder.embed_tokens.weight"), state["shared.weight"]):
        raise ValueError("the encoder's and the decoder's word embeddings differ")

    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties T5's output layer to the embeddings whatever the configuration says; Flan-T5's
    # is its own.  On loading, transformers sees two different tensors in the file and leaves them apart.
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    _fill(model, state, tied=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    _save(model, target)
    # T5Config turns the flag into True as it reads it.  The file must say False: that is what tells
    # transformers not to scale the decoder's states by d_model**-0.5 as the first T5 did.
    _edit_json(target / "config.json", tie_word_embeddings=False, scale_decoder_outputs=False)
    _save_tokenizer(
        source / "tokenizer.json",
        target,
        transformers.PreTrainedTokenizerFast,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    )


def minilm(source: Path, target: Path) -> None:
    """all-MiniLM-L6-v2, which is already in transformers' own layout."""
    config, state = _minilm(source)
    model = transformers.BertModel(config)
    _fill(model, state)
    _save(model, target)
    _save_minilm_tokenizer(source, target)


def minilm_mlm(source: Path, target: Path) -> None:
    """MiniLM with the low-rank updates and the masked-LM head that `recipes/minilm_mlm.py` learned."""
    from safetensors.torch import load_file

    config, state = _minilm(source)
    learned = {k: v.float() for k, v in load_file(_LEARNED / "minilm_mlm.safetensors").items()}
    state = {f"bert.{name}": tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    for name in [n for n in learned if n.endswith(".A")]:
        path = name.removesuffix(".A")
        state[f"bert.encoder.{path}.weight"] += learned.pop(f"{path}.B") @ learned.pop(name)
    places = {
        "head.dense.weight": "transform.dense.weight",
        "head.dense.bias": "transform.dense.bias",
        "head.norm.weight": "transform.LayerNorm.weight",
        "head.norm.bias": "transform.LayerNorm.bias",
        "head.bias": "bias",
    }
    state |= {f"cls.predictions.{place}": learned.pop(name) for name, place in places.items()}
    if learned:
        raise ValueError(f"weights left over: {sorted(learned)}")
    model = transformers.BertForMaskedLM(config)
    _fill(model, state, tied=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"))
    _save(model, target)
    _save_minilm_tokenizer(source, target)


def _minilm(source: Path) -> tuple[transformers.BertConfig, State]:
    from safetensors.torch import load_file

    config = transformers.BertConfig(**json.loads((source / "config.json").read_text("utf-8")))
    state = load_file(source / "model.safetensors")
    state.pop("embeddings.position_ids")  # a constant, no parameter, in files of transformers < 4.31
    return config, state


def _save_minilm_tokenizer(source: Path, target: Path) -> None:
    _save_tokenizer(
        source / "tokenizer.json",
        target,
        transformers.BertTokenizerFast,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        do_lower_case=True,
        model_max_length=512,
    )


def dinov2(source: Path, target: Path) -> None:
    """DINOv2 ViT-S/14 out of a detector in ONNX, of which it is the ``backbone``."""
    config, state = _dinov2(source)
    model = transformers.Dinov2Model(config)
    _fill(model, state)
    _save(model, target)
    _dinov2_processor(256, 224).save_pretrained(target)


def dino_minilm_clip(source: Path, target: Path) -> None:
    """DINOv2 ViT-S/14 and MiniLM with the projections that `recipes/dual_encoder.py` learned; 98-pixel images."""
    config, state = _dinov2(source)
    _save_dual(config, state, "dino_minilm_clip", source, target)
    _dinov2_processor(98, 98).save_pretrained(target)


def clip_b16_minilm(source: Path, target: Path) -> None:
    """CLIP ViT-B/16's image tower and MiniLM with the projections that `recipes/dual_encoder.py` learned.

    For 144-pixel images: the 14 x 14 table of positions is interpolated to 9 x 9 here, once and for all, so that
    the model takes the images its processor makes.
    """
    size = 144
    config = _clip_vision_config()
    state, _ = read_onnx(_only(source, "*.onnx"))
    state = {n.removeprefix("vision_model."): v for n, v in state.items() if n != "visual_projection.weight"}
    tower = transformers.CLIPVisionModel(config)
    _fill(tower, state)
    table = tower.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + (size // 16) ** 2, 768), size, size)
    state["embeddings.position_embedding.weight"] = table[0]
    config.image_size = size
    _save_dual(config, state, "clip_b16_minilm", source, target)
    _clip_processor(size).save_pretrained(target)


def _save_dual(vision: Any, vision_state: State, name: str, source: Path, target: Path) -> None:
    """A `VisionTextDualEncoderModel` of an image tower, MiniLM with mean pooling, and learned projections."""
    from safetensors.torch import load_file

    from cuelight.backbones.mean_text import MeanBertConfig

    bert, text_state = _minilm(source)
    text = MeanBertConfig(**{k: v for k, v in bert.to_dict().items() if k != "model_type"})
    learned = {k: v.float() for k, v in load_file(_LEARNED / f"{name}.safetensors").items()}
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=len(learned["text_projection.weight"])
    )
    model = transformers.VisionTextDualEncoderModel(config)
    state = {f"vision_model.{k}": v for k, v in vision_state.items()} | learned
    state |= {f"text_model.{k}": v for k, v in text_state.items() if not k.startswith("pooler.")}
    _fill(model, state)
    _save(model, target)
    _save_minilm_tokenizer(source, target)


def _dinov2(source: Path) -> tuple[transformers.Dinov2Config, State]:
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    named, anonymous = read_onnx(_only(source, "*.onnx"))
    old_names = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    }
    state = {
        _rename(name.removeprefix("backbone."), old_names): value
        for name, value in named.items()
        if name.startswith("backbone.")
    }
    # The position table, 1 class token + 37 x 37 patches, was folded into two anonymous constants.
    parts = [_with_shape(anonymous, (1, count, 384)) for count in (1, 37 * 37)]
    state["embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # serves DINOv2's own training only
    return config, state


def _dinov2_processor(edge: int, crop: int) -> Any:
    return transformers.BitImageProcessor(
        do_resize=True,
        size={"shortest_edge": edge},
        resample=3,  # bicubic
        do_center_crop=True,
        crop_size={"height": crop, "width": crop},
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    )


def clip_vision(source: Path, target: Path) -> None:
    """The image tower of CLIP ViT-B/16 with its projection, from 8-bit ONNX."""
    state, anonymous = read_onnx(_only(source, "*.onnx"))
    if anonymous:
        raise ValueError(f"weights without a name: {sorted(anonymous)}")
    model = transformers.CLIPVisionModelWithProjection(_clip_vision_config())
    _fill(model, state)
    _save(model, target)
    _clip_processor(224).save_pretrained(target)


def _clip_vision_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
        projection_dim=512,
        hidden_act="quick_gelu",
    )


def _clip_processor(size: int) -> Any:
    return transformers.CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": size},
        resample=3,  # bicubic
        do_center_crop=True,
        crop_size={"height": size, "width": size},
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
        do_convert_rgb=True,
    )


def vit_base(source: Path, target: Path) -> None:
    """ViT-B/16 with its ImageNet head: integers with one scale and one zero point per tensor."""
    from safetensors.torch import load_file

    raw = load_file(source / "pretrained_weights.safetensors")
    new_names = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    state = {
        _rename(name, new_names): (value.float() - raw[f"{name}_zero_point"].float())
        * raw[f"{name}_scale"].float()
        for name, value in raw.items()
        if not name.endswith(("_scale", "_zero_point"))
    }
    model = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    _fill(model, state)
    _save(model, target)
    transformers.ViTImageProcessor(
        do_resize=True,
        size={"height": 224, "width": 224},
        resample=2,  # bilinear
        do_rescale=True,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(target)


def whisper(source: Path, target: Path) -> None:
    """Whisper tiny.en from OpenAI's checkpoint, with a tokenizer built from the tiktoken vocabulary."""
    checkpoint = torch.load(source / "tiny.en.pt", map_location="cpu", weights_only=True)
    dims = checkpoint["dims"]
    tokenizer = _whisper_tokenizer(source / "gpt2.tiktoken", dims["n_vocab"])
    end, start, no_timestamps = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    )
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = transformers.WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        max_source_positions=dims["n_audio_ctx"],
        max_target_positions=dims["n_text_ctx"],
        **special,
    )
    old_names = {
        "mlp.0.": "fc1.",
        "mlp.2.": "fc2.",
        "mlp_ln.": "final_layer_norm.",
        "cross_attn_ln.": "encoder_attn_layer_norm.",
        "attn_ln.": "self_attn_layer_norm.",
        ".cross_attn.": ".encoder_attn.",
        ".attn.": ".self_attn.",
        ".query.": ".q_proj.",
        ".key.": ".k_proj.",
        ".value.": ".v_proj.",
        ".out.": ".out_proj.",
        "blocks.": "layers.",
        "decoder.ln.": "decoder.layer_norm.",
        "ln_post.": "layer_norm.",
        "token_embedding.": "embed_tokens.",
        "positional_embedding": "embed_positions.weight",
    }
    state = {
        "model." + _rename(name, old_names): value.float()
        for name, value in checkpoint["model_state_dict"].items()
    }
    model = transformers.WhisperForConditionalGeneration(config)
    _fill(model, state, tied=("proj_out.weight",))
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS

    model.generation_config = transformers.GenerationConfig(
        **special,
        is_multilingual=False,
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=dims["n_text_ctx"],
        begin_suppress_tokens=[tokenizer.convert_tokens_to_ids("Ġ"), end],
        suppress_tokens=NON_SPEECH_TOKENS,
    )
    _save(model, target)
    tokenizer.save_pretrained(target)
    transformers.WhisperFeatureExtractor(feature_size=dims["n_mels"]).save_pretrained(target)


def minimind2(source: Path, target: Path) -> None:
    """MiniMind2-Small from 8-bit ONNX."""
    config = transformers.LlamaConfig.from_pretrained(source)
    config.pad_token_id = 0
    model = transformers.LlamaForCausalLM(config)
    state, _ = read_onnx(source / "model_quantized.onnx")
    # The file holds the shared embedding twice: the input's, with one scale for the whole table, and the
    # output layer's, with one scale per word.  The finer one serves both.
    state["model.embed_tokens.weight"] = state.pop("lm_head.weight")
    _fill(model, state, tied=("lm_head.weight",))
    _save(model, target)
    _save_fast(transformers.AutoTokenizer.from_pretrained(source, local_files_only=True), target)


def _from_gguf(file: Path, target: Path) -> None:
    """Convert a GGUF language model whose output layer is its embeddings."""
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    with redirect_stderr(io.StringIO()):  # the reader draws a bar of its own
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **options
        )
    left = {key: names for key, names in report.items() if names}
    if left:
        raise ValueError(f"the GGUF file does not fit the model: {left}")
    # The loaded model counts as quantised and refuses to be saved; a fresh one takes its float weights.
    config = model.config
    del config.quantization_config
    vars(config).pop("_model_name_or_path", None)
    tokenizer.model_max_length = config.max_position_embeddings
    plain = type(model)(config)
    _fill(plain, model.state_dict())
    if plain.get_output_embeddings().weight is not plain.get_input_embeddings().weight:
        raise ValueError("the output layer should share the embeddings' weight")
    _save(plain, target)
    _save_fast(tokenizer, target)


def _fill(model: torch.nn.Module, state: State, *, tied: Collection[str] = ()) -> None:
    """Copy ``state`` into ``model``, in which the names ``tied`` share another parameter's tensor."""
    model.float()
    result = model.load_state_dict(state, strict=False)
    missing = sorted(set(result.missing_keys) - set(tied))
    if missing or result.unexpected_keys:
        raise ValueError(f"weights missing: {missing}; weights left over: {sorted(result.unexpected_keys)}")
    names = {id(parameter) for name, parameter in model.named_parameters() if name in state}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in names:
            raise ValueError(f"{name} was not filled")
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} holds values that are not finite")


def _save(model: Any, target: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and one ``model.safetensors`` in float32."""
    model.config.dtype = torch.float32
    model.config.name_or_path = ""
    model.eval().save_pretrained(target, max_shard_size="100GB")


def _save_tokenizer(file: Path, target: Path, kind: Any, **options: Any) -> None:
    """Save the tokenizer of ``file`` without the padding and truncation that its author had switched on."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(file))
    kind(tokenizer_file=str(file), **options).save_pretrained(target)


def _save_fast(tokenizer: Any, target: Path) -> None:
    """Save a tokenizer without the record of where it was loaded from."""
    for key in ("is_local", "local_files_only", "gguf_file", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(target)


def _whisper_tokenizer(ranks_file: Path, size: int) -> Any:
    """GPT-2's byte pairs with the special tokens of English Whisper, ``size`` tokens in all.

    Special tokens follow the order of OpenAI's ``whisper/tokenizer.py``: the end, the start, 99 languages,
    six marks, then the 1501 time stamps from 0 to 30 seconds.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    ranks = {}
    for line in ranks_file.read_text("ascii").splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _byte_letters()
    vocabulary = {_spell(token, letters): rank for token, rank in ranks.items()}
    merges = [
        (_spell(left, letters), _spell(right, letters))
        for token in sorted(ranks, key=ranks.__getitem__)
        if len(token) > 1
        for left, right in [_last_merge(token, ranks)]
    ]
    marks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    special = ["endoftext", "startoftranscript", *list(LANGUAGES)[:99], *marks]
    special += [f"{step * 0.02:.2f}" for step in range(1501)]
    for name in special:
        vocabulary[f"<|{name}|>"] = len(vocabulary)
    if len(vocabulary) != size:
        raise ValueError(f"the vocabulary has {len(vocabulary)} tokens, the model {size}")
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=merges, model_max_length=448)
    words = len(ranks)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{n}|>" for n in special[:-1501]]})
    tokenizer.add_tokens([transformers.AddedToken(f"<|{n}|>", special=False) for n in special[-1501:]])
    if tokenizer.convert_tokens_to_ids("<|endoftext|>") != words or len(tokenizer) != size:
        raise ValueError("the special tokens do not follow the vocabulary")
    return tokenizer


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that byte pair encoding joins last to make ``token``."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(pieces)]
        at = joined.index(min(joined))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces[0], pieces[1]


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: itself where printable, else the next one from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _spell(token: bytes, letters: Mapping[int, str]) -> str:
    return "".join(letters[byte] for byte in token)


def _rename(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


def _with_shape(tensors: State, shape: tuple[int, ...]) -> torch.Tensor:
    (found,) = [tensor for tensor in tensors.values() if tuple(tensor.shape) == shape]
    return found


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def _edit_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text("utf-8")) | values
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
