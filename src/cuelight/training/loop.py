"""The one training loop.

Thin on purpose: accelerate places, casts, scales, clips and gathers; transformers schedules; what is left
is the order of things, and the promise that an interrupted run ends with the bits of an uninterrupted one.
The promise rests on three facts: random numbers depend on (seed, stage, step) only; a checkpoint holds all
the rest; a checkpoint is taken between steps only.  It holds as far as the device computes
deterministically, which CUDA does with ``torch.use_deterministic_algorithms(True)``.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Adafactor, get_scheduler

from cuelight.errors import ConfigError, CuelightError, DataError, is_out_of_memory
from cuelight.evaluation.memory import peak_memory
from cuelight.training import checkpoint
from cuelight.training.batches import Batches, own_randomness, reseed
from cuelight.training.config import TrainConfig
from cuelight.training.progress import Log, Watcher
from cuelight.training.stage import ParamGroup, Stage

__all__ = ["Interrupted", "TrainResult", "train"]

CHECKPOINT_SECONDS = 30.0
CLIP_WARMUP = 1e-5
ENTRIES = 200  # of the history, per stage, apart from evaluations


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message is one line that says how to go on."""


@dataclass
class TrainResult:
    """What a run did.

    ``history`` has an entry for every evaluation and about 200 more a stage: ``stage``, ``step``, ``loss``
    (mean over the steps since the entry before), ``lr`` (by group) and, after an evaluation, ``validation``.
    ``best`` is the best evaluation of the last stage that had one.  ``steps`` and ``seconds`` count all
    stages and survive interruptions.  ``peak_memory`` is in bytes: of the CUDA device, else of the process.
    """

    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    stopped_early: bool = False
    peak_memory: int = 0


@dataclass
class _Position:
    """Where a stage stands between two steps."""

    step: int = 0
    scheduled: int = 0
    bad: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_count: int = 0


def train(
    stages: Sequence[Stage],
    learned: nn.Module,
    config: TrainConfig,
    *,
    workdir: Path | None = None,
    fingerprint: str = "",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train ``learned`` through ``stages``, in place.

    Args:
        stages: run one after the other; their names differ.
        learned: its ``state_dict()`` is what is learned and saved.  Its set of tensors must not change
            during the run; a tensor may sit idle until its stage.
        config: what the user set; a stage's ``defaults`` fill in the rest.
        workdir: where the checkpoint and the log go.  Called again with the same one, training goes on where
            it was, and returns at once when it had ended.  None: nothing is saved.
        fingerprint: of whatever else decides the outcome (backbone, data, method configuration).
        device: None takes accelerate's choice.
        progress: show progress on stderr.

    Raises:
        ConfigError: a field that can not work, or ``workdir`` holds a run of another configuration or data.
        ArtifactError: the checkpoint is damaged.
        DataError: a stage has no examples.
        CuelightError: the loss is not finite, memory or disk is full, or ``workdir`` is in use.
        Interrupted: Ctrl-C; the second one does not wait for the step to end.
    """
    names = [stage.name for stage in stages]
    if len(set(names)) != len(names):
        raise ValueError(f"stage names must differ: {names}")
    with own_randomness(), ExitStack() as stack:
        run = _Run(list(stages), learned, config, workdir, fingerprint, device)
        run.watcher = stack.enter_context(Watcher(progress and run.main))
        stack.callback(run.log.close)
        if workdir is not None and run.main:
            stack.enter_context(_locked(workdir))
        stack.enter_context(run.interruptible())
        return run()


class _Run:
    def __init__(
        self,
        stages: list[Stage],
        learned: nn.Module,
        config: TrainConfig,
        workdir: Path | None,
        fingerprint: str,
        device: str | torch.device | None,
    ) -> None:
        self.stages, self.learned, self.workdir = stages, learned, workdir
        self.device = torch.device(device) if device is not None else None
        self.settings = [config.over(stage.defaults, stage.insists) for stage in stages]
        state = _process_state(self.device)
        if state.device.type == "cpu" and any(c.precision == "fp16" for c in self.settings):
            # accelerate would quietly take fp32; said here, before anything is written
            raise ConfigError("precision='fp16' does not work on the CPU: take 'bf16' or 'fp32'")
        self.main, self.rank, self.world = state.is_main_process, state.process_index, state.num_processes
        # workers and the rhythm of checkpoints may change between two sittings: they change no result
        hidden = {"workers", "checkpoint_every"}
        self.identity: dict[str, Any] = {
            "fingerprint": fingerprint,
            "processes": self.world,
            "stages": [stage.name for stage in stages],
            "config": {
                s.name: c.model_dump(exclude=hidden) for s, c in zip(stages, self.settings, strict=True)
            },
        }
        self.result = TrainResult()
        self.watcher = Watcher(False)
        self.log = Log(workdir / checkpoint.LOG if workdir is not None and self.main else None)
        self.stop_asked = False
        self.saved_at = self.counted_at = time.monotonic()

    # -- the run -----------------------------------------------------------------------------------

    def __call__(self) -> TrainResult:
        self.learned.to(PartialState().device)
        found = checkpoint.read(self.workdir) if self.workdir is not None else None
        if found is not None and found[0]["stage"] == 0 and "position" not in found[0]:
            found = None  # nothing was learned yet: a mistake found at the start may be corrected
        first = 0
        if found is not None:
            meta, tensors = found
            self._check(meta)
            first = meta["stage"]
            self.result = TrainResult(**meta["result"])
            _restore(self.learned, tensors, "start/")
        PartialState().wait_for_everyone()
        self.log.repair(
            self.identity["stages"],
            first,
            found[0].get("position", {}).get("step", 0) if found is not None else -1,
        )
        if found is not None and self.main and first < len(self.stages):
            self.watcher.say(f"going on from {self.workdir}")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if found is None:
            self._save(first)
        self.counted_at = time.monotonic()
        for index in range(first, len(self.stages)):
            self._stage(index, found if index == first else None)
            self._save(index + 1)
        if self.stop_asked and first < len(self.stages):
            raise Interrupted(f"interrupted after the last step{self._how_to_go_on('there')}")
        return self.result

    def _check(self, meta: dict[str, Any]) -> None:
        assert self.workdir is not None
        saved = meta["identity"]
        for key in ("fingerprint", "processes", "stages"):
            checkpoint.compare(self.workdir, {key: saved[key]}, {key: self.identity[key]})
        for name in self.identity["stages"]:
            where = f" in stage '{name}'" if len(self.stages) > 1 else ""
            checkpoint.compare(self.workdir, saved["config"][name], self.identity["config"][name], where)

    def _stage(self, index: int, found: tuple[dict[str, Any], dict[str, Tensor]] | None) -> None:
        stage, config = self.stages[index], self.settings[index]
        with self._named_errors(stage, config):
            work = _Work(self, index, found)
        try:
            if self.stop_asked and self.world == 1:
                self.interrupt(index, work.position.step, work.total)
            with self._named_errors(stage, config):
                work.run()
        finally:
            work.close()

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(self, stage: int, work: _Work | None = None) -> None:
        """Write a checkpoint: in the middle of ``work``, or at the start of ``stage``."""
        now = time.monotonic()
        self.result.seconds += now - self.counted_at
        self.counted_at = now
        self.result.peak_memory = max(self.result.peak_memory, peak_memory(PartialState().device))
        if self.workdir is not None and self.main:
            self.log.sync()
            meta: dict[str, Any] = {"identity": self.identity, "stage": stage}
            meta["result"] = asdict(self.result)
            if work is None:
                tensors = _prefixed("start/", checkpoint.snapshot(self.learned))
            else:
                tensors, more = work.state()
                meta.update(more)
            checkpoint.write(self.workdir, meta, tensors)
        self.saved_at = time.monotonic()

    def due(self, step: int, every: int | None) -> bool:
        """Whether a checkpoint is due after ``step``."""
        if every is not None:
            return step % every == 0
        return time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS

    # -- Ctrl-C and other ends -----------------------------------------------------------------------

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C lets the step end and is raised between steps; the second is raised at once."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_asked:
                raise Interrupted(f"interrupted at once{self._how_to_go_on('the last checkpoint')}")
            self.stop_asked = True
            self.watcher.shout("stopping after this step; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        except KeyboardInterrupt as error:
            if isinstance(error, Interrupted):
                raise
            raise Interrupted(f"interrupted{self._how_to_go_on('the last checkpoint')}") from error
        finally:
            signal.signal(signal.SIGINT, before)

    def interrupt(self, index: int, step: int, total: int) -> None:
        """Raise what a Ctrl-C means; the checkpoint is written."""
        place = f"step {step} of {total} of stage '{self.stages[index].name}'"
        raise Interrupted(f"interrupted at {place}{self._how_to_go_on('there')}")

    def _how_to_go_on(self, where: str) -> str:
        if self.workdir is None:
            return "; nothing is saved, because no --output was given"
        return f"; run the same command again to go on from {where} ({self.workdir})"

    @contextmanager
    def _named_errors(self, stage: Stage, config: TrainConfig) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            half, twice = config.batch_size // 2, 2 * config.accumulation
            smaller = f"lower batch_size (batch_size={half} with accumulation={twice} learns the same) or "
            raise CuelightError(
                f"out of memory in stage '{stage.name}' with batch_size={config.batch_size}: "
                f"{smaller if half else ''}shorten the inputs (length)"
            ) from error


class _Work:
    """One stage under way."""

    def __init__(self, run: _Run, index: int, found: tuple[dict[str, Any], dict[str, Tensor]] | None) -> None:
        self.run_, self.index = run, index
        self.stage, self.config = run.stages[index], run.settings[index]
        self.accelerator = _accelerator(self.config.precision, run.device)
        self.device = self.accelerator.device
        self.start = checkpoint.snapshot(run.learned) if run.workdir is not None else {}
        self._seed("begin")
        if self.stage.begin is not None:
            self.stage.begin()
        if run.world > 1:  # a method may have drawn its first values without a seed
            run.learned.load_state_dict(broadcast(run.learned.state_dict()))
        self._seed("groups")
        self.groups = self.stage.groups() if callable(self.stage.groups) else self.stage.groups
        self._seed("examples")
        examples = self.stage.examples() if callable(self.stage.examples) else self.stage.examples
        if len(examples) == 0:
            raise DataError(f"stage '{self.stage.name}' has no examples to learn from")
        self.batches = Batches(
            examples,
            self.stage.collate,
            self.stage.batch_order,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            stage=index,
            rank=run.rank,
            world=run.world,
        )
        self.total = _total_steps(self.config, self.batches.per_epoch)
        self.position = _Position()
        self.best_tensors: dict[str, Tensor] = {}
        self._build(len(examples))
        if found is not None and "position" in found[0]:
            self._resume(*found)

    def _seed(self, *what: object) -> None:
        reseed(self.config.seed, self.index, *what)

    def _build(self, examples: int) -> None:
        config, learned = self.config, self.run_.learned
        known = {id(p): name for name, p in learned.named_parameters()}
        for group in self.groups:
            for name, parameter in group.params.items():
                if id(parameter) not in known:
                    raise ValueError(f"group '{group.name}': '{name}' is no parameter of the learned module")
        self.rates = [group.lr for group in self.groups]
        if config.learning_rate is not None:
            self.rates[0] = config.learning_rate
        self.parameters = [p for group in self.groups for p in group.params.values()]
        mine = {id(p) for p in self.parameters}
        self.required = [(p, p.requires_grad) for p in learned.parameters()]
        for parameter, _ in self.required:
            parameter.requires_grad_(id(parameter) in mine)
        optimizer = _optimizer(config, self.groups, self.rates)
        self.scheduler = self._schedule(optimizer)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        every = config.evaluate_every or max(1, round(self.total / 10))
        self.evaluate_every = every if self.stage.validate is not None else None
        self.record_every = max(1, self.total // ENTRIES)
        self.signature = {
            "examples": examples,
            "total steps": self.total,
            "groups": {
                group.name: {
                    "rate": rate,
                    "weight_decay": _decay(config, group),
                    "tensors": {name: list(p.shape) for name, p in group.params.items()},
                }
                for group, rate in zip(self.groups, self.rates, strict=True)
            },
        }

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        config = self.config
        if config.schedule == "clip":
            epoch = max(1, round(self.batches.per_epoch / config.accumulation))
            epochs = max(1, round(self.total / epoch))
            return LambdaLR(optimizer, [_clip_schedule(epoch, epochs, rate) for rate in self.rates])
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        return get_scheduler(name, optimizer, _warmup_steps(config, self.total), self.total)

    # -- state ---------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON of a checkpoint in the middle of this stage."""
        moments, optimizer = checkpoint.pack_optimizer(self.optimizer.optimizer)
        tensors = {
            **_prefixed("start/", self.start),
            **_prefixed("learned/", checkpoint.snapshot(self.run_.learned)),
            **_prefixed("best/", self.best_tensors),
            **_prefixed("optimizer/", moments),
        }
        scaler = self.accelerator.scaler
        more = {
            "position": asdict(self.position),
            "optimizer": optimizer,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "signature": self.signature,
        }
        return tensors, more

    def _resume(self, meta: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        assert self.run_.workdir is not None
        where = f" in stage '{self.stage.name}'"
        checkpoint.compare(self.run_.workdir, meta["signature"], self.signature, where)
        self.position = _Position(**meta["position"])
        _restore(self.run_.learned, tensors, "learned/")
        self.best_tensors = _unprefixed("best/", tensors)
        self.scheduler.last_epoch = self.position.scheduled  # its rates are a function of this number alone
        checkpoint.unpack_optimizer(
            self.optimizer.optimizer, _unprefixed("optimizer/", tensors), meta["optimizer"]
        )
        if meta["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(meta["scaler"])

    # -- training --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end of the stage, from wherever it stands."""
        position, run, config = self.position, self.run_, self.config
        run.watcher.stage(self.stage.name, position.step, self.total)
        stream = self.batches.stream(
            position.step * config.accumulation,
            self.total * config.accumulation,
            config.workers,
            self.device.type == "cuda",
        )
        losses = _Losses(self._account)
        run.learned.train()
        while position.step < self.total and not self._out_of_patience():
            step = position.step + 1
            rates = dict(zip((g.name for g in self.groups), self._rates(), strict=True))
            interrupted = self._step(step, stream, losses)
            position.step = step
            run.result.steps += 1
            evaluate = self.evaluate_every is not None and (
                step % self.evaluate_every == 0 or step == self.total
            )
            if evaluate or step % self.record_every == 0 or step == self.total:
                losses.settle()
                self._record(rates, self._evaluate() if evaluate else None)
            if interrupted or run.due(step, config.checkpoint_every):
                losses.settle()
                run._save(self.index, self)
            if interrupted:
                run.interrupt(self.index, step, self.total)
        run.result.stopped_early |= position.step < self.total
        if self.best_tensors:
            run.learned.load_state_dict(self.best_tensors)
        if position.best:
            run.result.best = {"stage": self.stage.name, **position.best}
        if self.stage.finish is not None:
            self._seed("finish")
            self.stage.finish()

    def close(self) -> None:
        """Leave the module as it was found, apart from its values."""
        for parameter, required in self.required:
            parameter.requires_grad_(required)
            parameter.grad = None

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.position.bad >= self.config.patience

    def _step(self, step: int, stream: Iterator[Any], losses: _Losses) -> bool:
        """One optimiser step; True when any process was asked to stop."""
        first = (step - 1) * self.config.accumulation
        sizes = [self.batches.sizes(k) for k in range(first, first + self.config.accumulation)]
        whole = sum(all_ for all_, _ in sizes)
        loss_sum = torch.zeros((), device=self.device)
        for micro, (_, mine) in enumerate(sizes):
            batch = next(stream)
            if batch is None:
                continue
            batch = send_to_device(batch, self.device, non_blocking=True)
            self._seed("loss", step, micro, self.run_.rank)
            with self.accelerator.autocast():
                loss = self.stage.loss(batch)
            loss = loss * (mine / whole)  # a short batch weighs what it holds
            self.accelerator.backward(loss, inputs=self.parameters)
            loss_sum += loss.detach()
        stop = self.run_.stop_asked
        if self.run_.world > 1:
            loss_sum, stop = self._reduce(loss_sum, stop)
        if self.config.clip:
            self.accelerator.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            self.scheduler.step()
            self.position.scheduled += 1
        if self.stage.after_step is not None:
            with torch.no_grad():
                self.stage.after_step()
        if self.stage.after_epoch is not None:
            with torch.no_grad():
                for epoch in self._ended(step):
                    self.stage.after_epoch(epoch, self.epochs)
        losses.add(step, loss_sum, self._rates()[0])
        return stop

    @property
    def epochs(self) -> int:
        """Passes over the examples, to the nearest whole number."""
        return max(1, round(self.total * self.config.accumulation / self.batches.per_epoch))

    def _ended(self, step: int) -> range:
        """The passes, from 1, that end with ``step``; all have ended with the stage."""
        each, per_epoch = self.config.accumulation, self.batches.per_epoch
        before, now = ((k * each) // per_epoch for k in (step - 1, step))
        return range(min(before, self.epochs) + 1, (self.epochs if step == self.total else now) + 1)

    def _reduce(self, loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """Add up gradients, loss and the wish to stop over all processes, in one message."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        present = [float(p.grad is not None) for p in self.parameters]
        tail = torch.tensor([float(stop), *present], device=self.device)
        parts = [g.float().reshape(-1) for g in gradients] + [loss.float().reshape(1), tail]
        flat = self.accelerator.reduce(torch.cat(parts), reduction="sum")
        *sums, total, tail = flat.split([p.numel() for p in parts])
        for parameter, gradient, there in zip(self.parameters, sums, tail[1:].tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if there else None
        return total[0], bool(tail[0] > 0)

    def _account(self, step: int, loss: float, rate: float) -> None:
        """Take note of the loss of a step, which may have ended a moment ago."""
        if not math.isfinite(loss):
            precision = "" if self.config.precision == "fp32" else ", or take precision='fp32'"
            raise CuelightError(
                f"the loss became {loss} at step {step} of stage '{self.stage.name}': "
                f"lower learning_rate (now {self.rates[0]:g}){precision}"
            )
        self.position.loss_sum += loss
        self.position.loss_count += 1
        self.run_.watcher.step(step, loss, rate)

    # -- evaluation --------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, float]:
        stage, position, learned = self.stage, self.position, self.run_.learned
        assert stage.validate is not None
        self._seed("validate", position.step)
        learned.eval()
        with torch.no_grad(), self.accelerator.autocast():
            metrics = {name: float(value) for name, value in stage.validate().items()}
        learned.train()
        if self.run_.world > 1:  # every process must come to the same decision
            metrics = broadcast_object_list([metrics])[0]
        if stage.monitor not in metrics:
            raise ValueError(f"stage '{stage.name}' watches '{stage.monitor}', not among {sorted(metrics)}")
        value = metrics[stage.monitor]
        best = position.best.get(stage.monitor, -math.inf if stage.higher_is_better else math.inf)
        if value > best if stage.higher_is_better else value < best:
            position.best, position.bad = {"step": position.step, **metrics}, 0
            if self.config.keep == "best":
                self.best_tensors = checkpoint.snapshot(learned)
        else:
            position.bad += 1
        self.run_.watcher.evaluated(stage.monitor, value)
        return metrics

    def _record(self, rates: dict[str, float], metrics: dict[str, float] | None) -> None:
        position, run = self.position, self.run_
        entry: dict[str, Any] = {
            "stage": self.stage.name,
            "step": position.step,
            "loss": position.loss_sum / max(1, position.loss_count),
            "lr": rates,
        }
        if metrics is not None:
            entry["validation"] = metrics
        position.loss_sum, position.loss_count = 0.0, 0
        run.result.history.append(entry)
        seconds = run.result.seconds + time.monotonic() - run.counted_at
        run.log.add({"time": round(time.time(), 3), **entry, "seconds": round(seconds, 3)})


class _Losses:
    """Reads losses one step late on CUDA, so that the host never waits for the step it just launched."""

    def __init__(self, account: Callable[[int, float, float], None]) -> None:
        self.account = account
        self.waiting: deque[tuple[int, Tensor, float, torch.cuda.Event | None]] = deque()

    def add(self, step: int, loss: Tensor, rate: float) -> None:
        event = None
        if loss.is_cuda:
            loss = loss.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, loss, rate, event))
        self._read(1 if event is not None else 0)

    def settle(self) -> None:
        self._read(0)

    def _read(self, leave: int) -> None:
        while len(self.waiting) > leave:
            step, loss, rate, event = self.waiting.popleft()
            if event is not None:
                event.synchronize()
            self.account(step, loss.item(), rate)


# -- small parts -----------------------------------------------------------------------------------------


def _process_state(device: torch.device | None) -> PartialState:
    """Accelerate's state of this process; a single process may choose its device anew in every run."""
    if not torch.distributed.is_initialized() and (
        not PartialState._shared_state or PartialState().num_processes == 1
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return PartialState(cpu=device is not None and device.type == "cpu")


def _accelerator(precision: str, device: torch.device | None) -> Accelerator:
    AcceleratorState._reset_state()  # the precision may differ between stages
    mixed = {"fp32": "no"}.get(precision, precision)
    try:
        return Accelerator(mixed_precision=mixed, cpu=device is not None and device.type == "cpu")
    except ValueError as error:
        raise ConfigError(f"precision={precision!r} does not work here ({error}): take 'fp32'") from error


def _optimizer(config: TrainConfig, groups: list[ParamGroup], rates: list[float]) -> torch.optim.Optimizer:
    parts: list[dict[str, Any]] = [
        {"params": list(group.params.values()), "lr": rate, "weight_decay": _decay(config, group)}
        for group, rate in zip(groups, rates, strict=True)
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parts, fused=True)  # on a CPU seven times as fast
    if config.optimizer == "sgd":
        return torch.optim.SGD(parts, momentum=0.9)
    return Adafactor(parts, lr=rates[0], scale_parameter=False, relative_step=False)


def _decay(config: TrainConfig, group: ParamGroup) -> float:
    return config.weight_decay if group.weight_decay is None else group.weight_decay


def _total_steps(config: TrainConfig, per_epoch: int) -> int:
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(round(config.epochs * per_epoch / config.accumulation, 6)))


def _warmup_steps(config: TrainConfig, total: int) -> int:
    if config.warmup < 1:
        return round(config.warmup * total)
    if config.warmup >= total:
        raise ConfigError(f"warmup={int(config.warmup)} must be below the number of steps ({total})")
    return int(config.warmup)


def _clip_schedule(epoch: int, epochs: int, rate: float) -> Callable[[int], float]:
    """Factor of ``rate`` by step: 1e-5 in the first of ``epochs`` of ``epoch`` steps, then a cosine from 1 on.

    The cosine starts to count behind the warm-up, as in Dassl, so the last epoch does not come to 0.
    """

    def factor(step: int) -> float:
        done = step // epoch
        return CLIP_WARMUP / rate if done == 0 else 0.5 * (1 + math.cos(math.pi * (done - 1) / epochs))

    return factor


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _restore(learned: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    values, now = _unprefixed(prefix, tensors), learned.state_dict()
    for name in sorted(values.keys() | now.keys()):
        old, new = (list(d[name].shape) if name in d else "missing" for d in (values, now))
        if old != new:
            raise ConfigError(
                f"learned tensor '{name}' is {old} in the checkpoint and {new} here; {checkpoint.REMEDY}"
            )
    learned.load_state_dict(values)


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CuelightError(f"{workdir}: another run is using it; wait, or give another --output") from error
    except OSError as error:
        raise CuelightError(
            f"{workdir}: can not be written ({error.strerror}); give another --output"
        ) from error
    try:
        checkpoint.sweep(workdir)
        yield
    finally:
        lock.release()
