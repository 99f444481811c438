"""What a method hands to the loop: stages, and the groups of parameters that each stage learns.

The loop never sees a model.  A stage's ``loss`` may run any backbone it likes; only the tensors named in
its groups receive a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["ParamGroup", "Stage"]


@dataclass
class ParamGroup:
    """Parameters that share a learning rate.

    ``params`` maps names to parameters of the learned module; ``lr`` is the peak rate; ``weight_decay=None``
    takes the configuration's.
    """

    name: str
    params: dict[str, nn.Parameter]
    lr: float
    weight_decay: float | None = None


@dataclass
class Stage:
    """One training phase.

    Callables run in this order when a stage starts, also when it is resumed, always with the learned
    tensors as the stage before left them: ``begin``, ``groups``, ``examples``.  ``finish`` runs after the
    stage's final tensors (see ``TrainConfig.keep``) are in place.  Killed in between, a stage runs
    ``begin`` or ``finish`` again, so both must give the same result twice.

    Every callable may draw random numbers from torch, numpy and ``random``: each call is seeded by the
    run's seed, the stage and the step.  In ``loss`` the learned module is in training mode and autocast is
    on as configured; ``validate`` runs in evaluation mode without gradients.

    Args:
        name: unique among the stages of a run.
        groups: what is learned; the first group is the one whose rate ``learning_rate`` replaces.
        examples: the training examples.
        collate: list of examples to a batch; tensors in lists, tuples and mappings are moved to the device.
            With ``workers > 0`` it runs in another process and must make CPU tensors.
        loss: batch to the scalar mean loss of its examples.
        validate: metrics of the learned tensors as they are.
        monitor: the metric that ``patience`` and ``keep='best'`` watch.
        higher_is_better: whether a larger ``monitor`` is better; of ties the earlier wins.
        after_step: runs without gradients after every optimiser step, for example a projection.
        after_epoch: ``(epoch, epochs)``, from 1, runs without gradients behind the step that ends a pass over the
            examples.  A last pass that is cut short counts from half its length on, and ends with the stage.  What
            it keeps must be learned tensors or buffers, which a checkpoint holds.
        defaults: ``TrainConfig`` fields that the method recommends; what the user gives wins.
        insists: fields that are this stage's own, whatever the user gives for the run (the rate of a stage that
            learns something else than the first one does).
        batch_order: ``(seed, epoch, n)`` to the ``n`` indices of an epoch; default: a seeded permutation.
    """

    name: str
    groups: list[ParamGroup] | Callable[[], list[ParamGroup]]
    examples: Sequence[Any] | Callable[[], Sequence[Any]]
    collate: Callable[[list[Any]], Any]
    loss: Callable[[Any], Tensor]
    validate: Callable[[], dict[str, float]] | None = None
    monitor: str = "loss"
    higher_is_better: bool = False
    begin: Callable[[], None] | None = None
    finish: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    after_epoch: Callable[[int, int], None] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    insists: Mapping[str, Any] = field(default_factory=dict)
    batch_order: Callable[[int, int, int], list[int]] | None = None
