"""What a user may set about training.

Nothing heavy is imported here: ``cuelight tune --help`` reads the descriptions and ranges below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["TrainConfig"]

FALLBACK_EPOCHS = 10.0


class TrainConfig(BaseModel):
    """How to train.  A field that is not given falls back to what the method's stage recommends.

    Raises:
        pydantic.ValidationError: on an unknown field, a value out of range, or both ``steps`` and ``epochs``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(
        None, ge=1, description="optimiser steps of every stage; not together with epochs"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="passes over the examples in every stage; default: what the stage itself sets",
    )
    batch_size: int = Field(16, ge=1, description="examples in one forward pass, over all processes together")
    accumulation: int = Field(
        1, ge=1, description="forward passes per optimiser step; runs on through the end of an epoch"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="peak rate of a stage's first parameter group; default: the method's own rate"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled weight decay, where the method sets none for a parameter group"
    )
    warmup: int | float = Field(
        0.0, ge=0, description="steps of linear warm-up, or, below 1, the fraction of all steps"
    )
    schedule: Literal["linear", "cosine", "constant", "clip"] = Field(
        "linear",
        description="how the learning rate goes on after the warm-up: falls to 0, or stays; clip: CoOp's, a first "
        "epoch at 1e-5, then a cosine by epochs that counts from there",
    )
    optimizer: Literal["adamw", "adafactor", "sgd"] = Field(
        "adamw", description="adamw, adafactor (fixed rate, no scaling by parameter) or sgd (momentum 0.9)"
    )
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 turns clipping off")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="arithmetic of the forward pass; learned tensors keep their own type"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides order, dropout and sampling")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps between evaluations; default: about 10 evaluations a stage"
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations without improvement before a stage stops early; default: never"
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="learned tensors a stage that evaluates ends with: of its best evaluation, or the last",
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; default: at the first step after every 30 seconds"
    )
    workers: int = Field(
        0, ge=0, description="processes that prepare batches; 0: the training process itself"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs:g} contradict: give one of them")
        if self.warmup and self.schedule == "clip":
            raise ValueError(f"warmup={self.warmup:g} and schedule='clip' contradict: it has its own warm-up")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup={self.warmup:g}: give whole steps, or a fraction below 1")
        return self

    def over(self, defaults: Mapping[str, Any], insists: Mapping[str, Any] | None = None) -> TrainConfig:
        """This configuration over a stage's ``defaults``: what was given explicitly wins, but not over ``insists``.

        ``None`` counts as not given, and one of ``steps`` and ``epochs`` displaces the other.
        """
        given = {k: v for k, v in self.model_dump().items() if k in self.model_fields_set and v is not None}
        given |= insists or {}
        if insists and insists.keys() & {"steps", "epochs"}:
            given = {k: v for k, v in given.items() if k in insists or k not in ("steps", "epochs")}
        merged = {**defaults, **given}
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if one in given:
                merged.pop(other, None)
        if merged.get("steps") is None and merged.get("epochs") is None:
            merged["epochs"] = FALLBACK_EPOCHS
        return TrainConfig(**merged)
