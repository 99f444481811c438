"""IAPT: every layer writes its own few soft tokens from what it reads of the instruction.

Before layer ``i`` a generator looks at the states of the text that enter it: a down-projection, self-attention pooling
to a fixed number of vectors, an activation whose shape is learned, an up-projection.  What comes out stands in the
prompt's slots while that layer runs, and is replaced at the next.  Prompts differ by input and by layer, so four
tokens are enough.  The answer is never pooled over.  While a model generates, the prompts are made once, with the
text, and live on in the cache: many tasks share a backbone at no cost per token, which low-rank updates do not offer.

Learns, per generator: ``width m + m`` down, ``m length`` pooling, ``m width + width`` up; per layer ``numerator +
denominator + 1`` coefficients of the activation.  Costs: ``length`` more tokens in every row and the generators; no
second pass.

Source: Zhu et al., *IAPT: Instruction-Aware Prompt Tuning for Large Language Models*, ACL 2024, arXiv 2405.18203.
There is no code.  The parts and their order are the paper's; the formula of the pooling, prompts to the left of the text
and the least-squares start of the activation (at GELU) are inferred.  Bi-level learning of the activations
(``--learning bilevel``: coefficients on one half of the rows, the rest on the other, then the rest anew) is from memory.
Ours: states are scaled to unit root mean square before the down-projection (``--no-normalise`` takes them as they are),
since those of a deep layer may be hundreds wide; default rates and bottleneck; in an encoder-decoder model generators
stand before the encoder's layers.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.methods.base import Card, Data, MethodConfig, PromptedLM
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.training import ParamGroup, Stage


class IAPTConfig(MethodConfig):
    length: int = Field(4, ge=1, le=2000, description="Soft tokens at every layer.")
    bottleneck: int = Field(16, ge=1, description="Width m inside the generators.")
    numerator: int = Field(5, ge=1, le=8, description="Degree of the activation's numerator.")
    denominator: int = Field(4, ge=1, le=8, description="Degree of its denominator.")
    share: int = Field(1, ge=1, description="Layers that share a generator; each keeps its own activation.")
    pooling: Literal["attention", "mean"] = Field(
        "attention", description="How the text becomes length vectors."
    )
    activation: Literal["rational", "fixed"] = Field(
        "rational", description="Learned in every layer, or GELU in all."
    )
    layers: Literal["all", "first"] = Field("all", description="Where prompts are written.")
    learning: Literal["joint", "bilevel"] = Field(
        "joint", description="Activations with all the rest, or first and on rows of their own."
    )
    normalise: bool = Field(True, description="Scale states to unit root mean square before they are read.")
    mismatch: bool = Field(False, description="Ablation: prompts from another row of the batch.")
    init_seed: int = Field(0, ge=0, description="Seed of the start.")


class IAPT(PromptedLM):
    """A prompt generator before every layer."""

    card: ClassVar[Card] = Card(
        name="iapt",
        title="IAPT: instruction-aware prompt tuning",
        family="language",
        modality="text",
        learns="a bottleneck network per layer (or group of layers), and an activation per layer",
        cost="length more tokens in every row and the generators; nothing per generated token",
        kinds=("causal", "seq2seq"),
        paper="IAPT: Instruction-Aware Prompt Tuning for Large Language Models",
        arxiv="2405.18203",
        year=2024,
    )
    Config: ClassVar[type[MethodConfig]] = IAPTConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: IAPTConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        width, self.depth = backbone.tower.width, backbone.tower.depth if config.layers == "all" else 1
        place, count, m = backbone.device, -(-self.depth // config.share), config.bottleneck
        self.down = nn.ModuleList(nn.Linear(width, m) for _ in range(count)).to(place)
        self.pool = nn.ModuleList(nn.Linear(m, config.length, bias=False) for _ in range(count)).to(place)
        self.up = nn.ModuleList(nn.Linear(m, width) for _ in range(count)).to(place)
        top, bottom = gelu_fit(config.numerator, config.denominator)
        self.top = nn.Parameter(torch.tensor([top] * self.depth, dtype=torch.float32, device=place))
        self.bottom = nn.Parameter(torch.tensor([bottom] * self.depth, dtype=torch.float32, device=place))
        for coefficients in (self.top, self.bottom):
            coefficients.requires_grad_(config.activation == "rational")
        self._learn: Literal["all", "generators", "activations"] = "all"
        self.start()

    def start(self) -> None:
        """Draw the generators' weights anew, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.init_seed)
            for part in (self.down, self.pool, self.up):
                for layer in part:
                    layer.reset_parameters()  # type: ignore[operator]

    def generate(self, layer: int, states: Tensor, is_text: Tensor) -> Tensor:
        """The soft tokens of a layer, ``[B, length, width]``, from the states ``[B, T, width]`` entering it."""
        k = layer // self.config.share
        down, pool, up = (part[k] for part in (self.down, self.pool, self.up))
        read = states.float()
        if self.config.normalise:
            read = nn.functional.rms_norm(read, read.shape[-1:])
        fixed = self._learn == "activations"
        hidden = _linear(down, read, fixed)  # [B, T, m]
        if self.config.pooling == "mean":
            share = (is_text / is_text.sum(1, keepdim=True))[:, None].expand(-1, self.config.length, -1)
        else:
            scores = _linear(pool, hidden, fixed).masked_fill(~is_text[..., None], float("-inf"))
            share = scores.softmax(1).mT  # [B, length, T]
        top, bottom = self.top[layer], self.bottom[layer]
        if self._learn == "generators":
            top, bottom = top.detach(), bottom.detach()
        prompt = _linear(up, rational(share.to(hidden.dtype) @ hidden, top, bottom), fixed)
        return prompt.roll(1, 0) if self.config.mismatch else prompt

    def condition(self, batch: TextBatch) -> Condition:
        room = torch.zeros(self.config.length, self.backbone.tower.width, device=self.backbone.device)
        return Condition(prompt=room, deep={k: partial(self.generate, k) for k in range(self.depth)})

    def groups(self) -> list[ParamGroup]:
        names = ("top", "bottom")
        rest = {name: p for name, p in self.named_parameters() if name not in names}
        found = [ParamGroup("generators", rest, lr=3e-3)]
        if self.config.activation == "rational":
            found.append(ParamGroup("activations", {n: getattr(self, n) for n in names}, lr=3e-3))
        return found

    def stages(self, data: Data) -> list[Stage]:
        if self.config.learning == "joint" or self.config.activation == "fixed":
            return super().stages(data)
        half = (len(data.train) + 1) // 2
        pairs = list(zip(data.train[:half], data.train[half:] or data.train, strict=False))
        search = Stage(
            name="activations",
            groups=self.groups(),
            examples=pairs,
            collate=lambda rows: tuple(self.task.collate(list(part)) for part in zip(*rows, strict=True)),
            loss=self._bilevel,
            defaults=dict(self.training_defaults),
        )
        anew = Stage(
            name="iapt",
            groups=self.groups()[:1],
            examples=data.train,
            collate=self.task.collate,
            loss=self.loss,
            begin=self.start,
            defaults=dict(self.training_defaults),
        )
        return [search, anew]

    def _bilevel(self, halves: tuple[TextBatch, TextBatch]) -> Tensor:
        """Generators learn from the first half, activations from the second."""
        try:
            self._learn = "generators"
            first = self.loss(halves[0])
            self._learn = "activations"
            return (first + self.loss(halves[1])) / 2
        finally:
            self._learn = "all"


def rational(x: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """``sum_j top[j] x^j / (1 + |sum_k bottom[k] x^(k+1)|)``, elementwise in float32; the denominator is at least 1."""
    x = x.float()
    above = torch.zeros_like(x)
    for a in reversed(top.unbind()):
        above = above * x + a
    below = torch.zeros_like(x)
    for b in reversed(bottom.unbind()):
        below = (below + b) * x
    return above / (1 + below.abs())


@cache
def gelu_fit(numerator: int, denominator: int) -> tuple[list[float], list[float]]:
    """Coefficients of the rational function nearest to GELU on [-4, 4], by least squares."""
    from scipy.optimize import least_squares
    from scipy.special import erf

    x = np.linspace(-4, 4, 801)
    wanted = x * (1 + erf(x / np.sqrt(2))) / 2
    powers = x[:, None] ** np.arange(max(numerator, denominator) + 1)

    def error(c: np.ndarray) -> np.ndarray:
        above = powers[:, : numerator + 1] @ c[: numerator + 1]
        below = powers[:, 1 : denominator + 1] @ c[numerator + 1 :]
        return above / (1 + np.abs(below)) - wanted

    start = np.zeros(numerator + 1 + denominator)
    start[1] = 0.5
    if numerator > 1:
        start[2] = 0.4
    if denominator > 1:
        start[numerator + 2] = 0.2
    fit = least_squares(error, start, method="lm" if len(x) > len(start) else "trf").x.tolist()
    return fit[: numerator + 1], fit[numerator + 1 :]


def _linear(layer: Any, x: Tensor, fixed: bool) -> Tensor:
    """``layer`` applied to ``x``; when ``fixed`` its weights get no gradient but ``x`` does."""
    if not fixed:
        return layer(x)
    return nn.functional.linear(x, layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
