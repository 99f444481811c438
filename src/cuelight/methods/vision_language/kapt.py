"""KAPT: what is known of a class in words, written into its prompt.

Prompts learned on some classes overfit them; a description of each class, new ones too, does not.  The class prompt is
``discrete continuous name``: *discrete*, frozen words that sum the description up; *continuous*, vectors that a small
network makes of the whole description's feature.  A head on the image side asks, with the mean class feature, which of the
image's tokens matter, and adds what they say to the feature.

Descriptions come from ``--knowledge``: WordNet's definitions, or a file with a text for each class (a line ``class: text``,
JSON, or a table such as CuPL's).  They stand in the artifact's ``prompt.txt``; for new classes (``rename``) the source is
read again.  A class without one is described by its name, and the report says so.

Learns: ``length * w_t`` vectors, the network and the head: 413,728 values on CLIP ViT-B/16.  Costs: the classes' texts, a
little longer, forward and backward; pictures once; in use a small attention over an image's tokens.

Source: Kan et al., *Knowledge-Aware Prompt Tuning for Generalizable Vision-Language Models*, ICCV 2023, arXiv 2308.11186.
**A reconstruction**: no code is known and the paper's details were not at hand.  From the paper: the two kinds of prompt,
their order, Wikipedia as source, the head on the image tower's output tokens under the text's guidance, the cosine
classifier.  Ours, each an option or named here: the summary (words of the first sentence by TF-IDF over the
classes' descriptions), the network (CoCoOp's, zero at the start), the head's form (zero at the start), all sizes, the
schedule (CoCoOp's).  At the start it is zero-shot CLIP with the discrete words before ``a photo of a``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor, nn
from torch.nn.functional import normalize

from cuelight.backbones.backbone import Backbone
from cuelight.data.descriptions import class_descriptions
from cuelight.errors import ConfigError
from cuelight.methods.base import Card, Data, MethodConfig
from cuelight.methods.contrastive import clip_schedule
from cuelight.methods.tokens import TokenReader
from cuelight.prompts.dual import encode_text, template_context
from cuelight.tasks.image import ImageBatch
from cuelight.training import ParamGroup

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+")


class KAPTConfig(MethodConfig):
    knowledge: str = Field("wordnet", description="Descriptions: 'wordnet', or a file with texts by class.")
    wordnet: str = Field("", description="Folder with WordNet's files, for --knowledge wordnet.")
    init_text: str = Field(
        "a photo of a {}.", description="Words the continuous prompt starts from, {} being the class name."
    )
    words: int = Field(8, ge=0, description="Words of the discrete prompt; 0 for none.")
    continuous: bool = Field(
        True, description="The continuous prompt depends on the description; else it is one for all."
    )
    head: bool = Field(True, description="The head on the image's tokens.")
    hidden: int | None = Field(
        None, ge=1, description="Width inside the network; default a sixteenth of the joint space."
    )
    attention: int = Field(64, ge=1, description="Width of the head's attention.")
    init_seed: int = Field(0, ge=0, description="Seed of the network and the head.")


def summary(text: str, name: str, most: int, seen: Counter[str], texts: int) -> list[str]:
    """The ``most`` weightiest words of the first sentence of ``text``, in its order.

    Args:
        text: a description.
        name: the class it describes; its words are left out.
        seen: for every word the number of descriptions that have it.
        texts: how many descriptions there are.
    """
    first = _SENTENCE.split(text.strip(), maxsplit=1)[0]
    own = {word.lower() for word in _WORD.findall(name)}
    words = [w for w in _WORD.findall(first) if w.lower() not in ENGLISH_STOP_WORDS | own]
    words = list(dict.fromkeys(words))
    counts = Counter(w.lower() for w in _WORD.findall(first))
    weight = {w: counts[w.lower()] * (math.log((1 + texts) / (1 + seen[w.lower()])) + 1) for w in words}
    kept = set(sorted(words, key=lambda w: -weight[w])[:most])
    return [w for w in words if w in kept]


class Head(nn.Module):
    """``W_o`` of the tokens' mean, weighed by how well they answer the query; zero at the start."""

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(width, attention, bias=False) for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Query ``[d]`` and tokens ``[B, T, d]`` to ``[B, d]``."""
        fit = self.key(tokens) @ self.query(query) / self.query.out_features**0.5
        return cast(Tensor, self.out(torch.einsum("bt,btd->bd", fit.softmax(-1), tokens)))


class KAPT(TokenReader):
    """Knowledge in the class prompt, and a head that reads the image under it.

    Attributes:
        knowledge: description by class name; missing for classes that the source does not know.
        context: ``[length, w_t]``, what all continuous prompts share.
    """

    card: ClassVar[Card] = Card(
        name="kapt",
        title="KAPT: knowledge-aware prompt tuning",
        family="vision_language",
        modality="vision-language",
        learns="context vectors, a small network from a description to their shift, a head on the image's tokens",
        cost="training: the classes' texts, pictures once; in use an attention over an image's tokens",
        kinds=("vision-language",),
        tasks=("classification",),
        paper="Knowledge-Aware Prompt Tuning for Generalizable Vision-Language Models",
        arxiv="2308.11186",
        year=2023,
    )
    Config: ClassVar[type[MethodConfig]] = KAPTConfig
    training_defaults: ClassVar[dict[str, Any]] = clip_schedule(epochs=50, batch_size=32)
    opens: ClassVar[tuple[str, ...]] = ("knowledge",)
    config: KAPTConfig

    def __init__(self, backbone: Backbone, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        self.knowledge: dict[str, str] = {}
        self._write()
        assert self.tokens.start is not None
        with torch.no_grad():
            self.context = nn.Parameter(backbone.embed(self.tokens.start).float().clone())
        joint, (length, width) = self.dual.width, self.context.shape
        self.network: nn.Sequential | None = None
        self.head: Head | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            if config.continuous:
                hidden = config.hidden or max(1, joint // 16)
                last = nn.Linear(hidden, length * width)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.network = nn.Sequential(nn.Linear(joint, hidden), nn.ReLU(), last)
            if config.head:
                self.head = Head(joint, config.attention)
        self.to(backbone.device)

    # ---- knowledge -------------------------------------------------------------------------------------

    def prepare(self, data: Data, seed: int) -> None:
        self.knowledge = {}
        self.renamed()
        super().prepare(data, seed)

    def renamed(self) -> None:
        if any(name not in self.knowledge for name in self.names):
            found = class_descriptions(self.config.knowledge, self.names, wordnet=self.config.wordnet)
            for name, texts in zip(self.names, found, strict=True):
                if texts:
                    self.knowledge.setdefault(name, " ".join(texts))
        self._write()

    def _write(self) -> None:
        """Make the class prompts and the descriptions' features anew."""
        said = [self.knowledge.get(name, name) for name in self.names]
        seen = Counter(word for text in said for word in {w.lower() for w in _WORD.findall(text)})
        lead = [
            summary(text, name, self.config.words, seen, len(said)) if name in self.knowledge else []
            for text, name in zip(said, self.names, strict=True)
        ]
        while True:
            try:
                joined = [" ".join(words) for words in lead]
                found = template_context(self.backbone, self.names, self.config.init_text, lead=joined)
                break
            except ConfigError:
                longest = max(map(len, lead))
                if not longest:
                    raise
                lead = [words[: longest - 1] for words in lead]
        self.tokens = self.on_device(found)
        self._described = normalize(self.texts(said, cut=True), dim=-1).float()

    @property
    def text(self) -> str | None:
        return "".join(f"{name}: {text}\n" for name, text in self.knowledge.items())

    def load_text(self, text: str) -> None:
        names = sorted(self.names, key=len, reverse=True)  # a name may hold a colon
        for line in filter(None, text.splitlines()):
            name = next((n for n in names if line.startswith(f"{n}: ")), line.partition(": ")[0])
            self.knowledge[name] = line[len(name) + 2 :]
        self._write()

    # ---- features --------------------------------------------------------------------------------------

    def class_features(self) -> Tensor:
        context = self.context.expand(len(self.names), -1, -1)
        if self.network is not None:
            context = context + self.network(self._described).view_as(context)
        return encode_text(self.backbone, self.tokens, context)

    def image_features(self, batch: ImageBatch) -> Tensor:
        return self._seen(batch, self._features())

    def _seen(self, batch: ImageBatch, classes: Tensor) -> Tensor:
        tokens = self.image_tokens(batch).float()
        features = tokens[:, 0]
        if self.head is not None:
            features = features + self.head(classes.mean(0), tokens)
        return normalize(features, dim=-1)

    def scores(self, batch: ImageBatch) -> Tensor:
        classes = self._features()
        return self.dual.scale * self._seen(batch, classes) @ classes.T

    def groups(self) -> list[ParamGroup]:
        return [ParamGroup("prompts", dict(self.named_parameters()), lr=0.002)]
