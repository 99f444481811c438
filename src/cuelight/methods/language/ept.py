"""EPT: DePT's decomposition, with a prompt that attends to the low-rank part and is projected into several subspaces.

A prompt of ``match_length`` vectors becomes a short one, ``P [length, width]``, and a low-rank pair ``A B`` that
is added to the frozen embeddings of the text by position.  Two modules then make up for the shortening.  *Prompt
fusion*: each short vector attends to the rows of ``A B`` and adds what it finds.  *Multi-space projection*: ``spaces``
bottlenecks, mixed by a softmax gate that sees the mean of the prompt.  The sum of both is the prompt that is fed.

Learns: ``length width + (positions + width) rank + 2 spaces width space_width + spaces width`` values; ``rank`` is
chosen so that this does not exceed ``match_length width``.  Costs: ``length`` more tokens and one addition.  After
training prompt and offset are constants; they are computed once.

Source: Lan et al., *Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion*, AAAI 2025, arXiv 2405.11464.
There is no code, and the paper's formulas were not at hand: its four stages and their order are the paper's; ours are
attention without weights of its own (full ones alone would break the size), GELU, the sum at the end, the sizes of
the subspaces, the gate's input, zero last matrices (so that training starts where prompt tuning does), and the rates.
``--start svd`` begins with the truncated singular value decomposition of vocabulary embeddings, as a summary of the
paper has it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cuelight.errors import ConfigError
from cuelight.methods.base import Card, MethodConfig, PromptedLM, PromptStart
from cuelight.prompts.conditioning import Condition, TextBatch
from cuelight.prompts.initial import vocabulary_sample
from cuelight.prompts.low_rank import low_rank_pair, truncated
from cuelight.training import ParamGroup


class EPTConfig(PromptStart):
    match_length: int = Field(100, ge=1, description="Length of the plain prompt whose size is matched.")
    length: int = Field(40, ge=1, description="Soft tokens of the short prompt.")
    rank: int | None = Field(
        None, ge=1, description="Rank of the offset; by default what the matched size allows."
    )
    spaces: int = Field(4, ge=1, description="Subspaces of the projection.")
    space_width: int = Field(4, ge=1, description="Width of each subspace.")
    decomposition: bool = Field(True, description="Off: a short prompt alone, without the low-rank part.")
    fusion: bool = Field(True, description="Off: the short prompt does not attend to the low-rank part.")
    projection: bool = Field(True, description="Off: no subspaces.")
    gate: Literal["learned", "uniform"] = Field(
        "learned", description="How subspaces are mixed: by a learned softmax, or equally."
    )
    keys: Literal["offset", "basis"] = Field(
        "offset", description="What fusion attends to: all rows of A B, or only those of B (fewer)."
    )
    start: Literal["zero", "svd"] = Field(
        "zero", description="Low-rank part: B = 0, or the truncated SVD of sampled vocabulary embeddings."
    )
    offset_rate: float | None = Field(
        None, gt=0, description="Learning rate of all but the short prompt (default 5e-4)."
    )


class EPT(PromptedLM):
    """A short prompt, fused and projected, and a low-rank offset of the text's embeddings."""

    card: ClassVar[Card] = Card(
        name="ept",
        title="EPT: efficient prompt tuning",
        family="language",
        modality="text",
        learns="a short prompt, a low-rank pair, subspaces and their gate: at most match_length x width values",
        cost="length more tokens, and one addition to the text's embeddings",
        kinds=("causal", "seq2seq"),
        paper="Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion",
        arxiv="2405.11464",
        year=2025,
    )
    Config: ClassVar[type[MethodConfig]] = EPTConfig
    training_defaults: ClassVar[dict[str, Any]] = {"steps": 300, "warmup": 0.06}
    config: EPTConfig

    def __init__(self, backbone: Any, task: Any, config: Any) -> None:
        super().__init__(backbone, task, config)
        width, place = backbone.tower.width, backbone.device
        spaces, narrow = config.spaces, config.space_width
        draw = torch.Generator().manual_seed(config.init_seed)
        self.prompt = config.vectors(backbone, config.length, task.words)
        self.down = self.up = self.gate = self.A = self.B = None
        if config.projection:
            # Different first matrices, or the subspaces would never part.
            down = torch.randn(spaces, width, narrow, generator=draw) / width**0.5
            self.down = nn.Parameter(down.to(place))
            self.up = nn.Parameter(torch.zeros(spaces, narrow, width, device=place))
            if config.gate == "learned":
                self.gate = nn.Parameter(torch.zeros(width, spaces, device=place))
        if config.decomposition:
            left = config.match_length * width - sum(p.numel() for p in self.parameters())
            rank = config.rank or left // (task.max_length + width)
            if rank < 1:
                raise ConfigError(
                    f"length: {config.length} of {config.match_length} leaves no room for a low-rank part; "
                    "give a smaller --length, fewer --spaces or a --rank"
                )
            self.A, self.B = low_rank_pair(task.max_length, rank, width, config.init_seed, place)
            if config.start == "svd":
                words = vocabulary_sample(backbone, task.max_length, config.init_seed)
                with torch.no_grad():
                    table = backbone.embed(torch.tensor(words, device=place))
                    try:
                        A, B = truncated(table, rank)
                    except ValueError as error:
                        raise ConfigError(
                            f"{error}; give a smaller --rank or a longer --max-length"
                        ) from error
                    self.A.copy_(A)
                    self.B.copy_(B)
        self._folded: tuple[tuple[int, ...], Condition] | None = None

    def offset(self) -> Tensor | None:
        """``[positions, width]``: what is added to the embeddings of the text."""
        return None if self.A is None or self.B is None else self.A @ self.B

    def weights(self) -> Tensor:
        """``[spaces]``: how much each subspace counts; they sum to 1."""
        if self.gate is None:
            return torch.full((self.config.spaces,), 1 / self.config.spaces, device=self.prompt.device)
        return (self.prompt.mean(0) @ self.gate).softmax(-1)

    def joint(self, offset: Tensor | None) -> Tensor:
        """``[length, width]``: the prompt that is fed, fused and projected."""
        fed = self.prompt
        if self.config.fusion and offset is not None and self.B is not None:
            keys = offset if self.config.keys == "offset" else self.B
            attention = (self.prompt @ keys.T / self.prompt.shape[1] ** 0.5).softmax(-1)
            fed = fed + attention @ keys
        if self.down is not None and self.up is not None:
            hidden = nn.functional.gelu(torch.einsum("sd,kdh->ksh", self.prompt, self.down))
            fed = fed + torch.einsum("k,ksh,khd->sd", self.weights(), hidden, self.up)
        return fed

    def condition(self, batch: TextBatch) -> Condition:
        if torch.is_grad_enabled():
            offset = self.offset()
            return Condition(prompt=self.joint(offset), offset=offset)
        # Nothing learns now, so all of it is a constant until a parameter is written to.
        state = tuple(p._version for p in self.parameters())
        if self._folded is None or self._folded[0] != state:
            offset = self.offset()
            self._folded = state, Condition(prompt=self.joint(offset), offset=offset)
        return self._folded[1]

    def groups(self) -> list[ParamGroup]:
        rate = 0.3 if self.backbone.kind == "seq2seq" else 0.01
        rest = {name: p for name, p in self.named_parameters() if name != "prompt"}
        found = [ParamGroup("prompt", {"prompt": self.prompt}, lr=rate)]
        return [*found, ParamGroup("modules", rest, lr=self.config.offset_rate or 5e-4)] if rest else found
