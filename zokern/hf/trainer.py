"""ZOTrainer: the Hugging Face Trainer with zeroth-order steps."""

import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback, TrainerState
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import TrainOutput

import zokern

from .. import distributed
from ..estimators import perturbation_of
from ..estimators.losses import backpropagated
from ..optim import ClosureOptimizer, named
from . import arguments, checkpoint
from .mean import Count, FiniteMean, at_least_one, share
from .sharded import ShardedTrainer

SIXTEEN = (torch.bfloat16, torch.float16)
Batch = tuple[dict[str, Any], Count, bool]  # inputs, their count, whether it is one of labels
Weighted = tuple[torch.Tensor, Count]  # a mean loss, and what it is the mean of


class ZOTrainer(ShardedTrainer):
    """Trainer, whose steps are those of a zokern optimizer. Everything but the step is Trainer's own.

    A step measures in ``training_step`` and moves in Trainer's ``optimizer.step()``. The model is in eval() mode throughout, since dropout
    would make the losses of a step differ by more than the perturbation. With gradient_accumulation_steps one perturbation sees all
    micro-batches, each weighted by its tokens or rows: the step is that of the large batch. Of several processes each sees its part of the
    batch, and all take the same step, bit for bit; the model is not wrapped.

    Weights in 16 bits are not perturbed in place, where they would drift, but streamed (``zokern.Streamed``), unless ``perturbation`` says
    otherwise.

    The optimizer is given as to Trainer: ``optimizer_cls_and_kwargs=(zokern.ZOAdam, {...})``, or ``optimizers=(optimizer, scheduler)``;
    with neither it is MeZO. A class is given the trainable parameters with their names, in the model's order; where there is weight decay,
    in the two groups that Trainer makes of them. lr and weight_decay, unless among the settings given, are those of TrainingArguments.
    MeZOSVRG's lr_full follows the schedule of its lr. Hybrid is given the model, and each of its halves has its own lr and weight_decay,
    which the schedule scales alike: ``optimizer_cls_and_kwargs=(zokern.Hybrid, {"zo": ..., "fo": ..., "split": ...})``. Its gradients are
    taken a micro-batch at a time, are those of all processes, and are clipped to max_grad_norm.

    Losses are of float32 where the model allows it: a model in 16 bits that returns its loss in 16 bits, or whose trained part is in
    float32, is evaluated under autocast. It logs the loss (mean over the perturbed models), ``projected_grad`` (the root mean square where
    there are several), ``loss_plus`` and ``loss_minus`` of the newest step, and ``skipped_steps``, those whose loss was not finite; of
    Hybrid ``grad_norm`` as well. With logging_nan_inf_filter=False nothing else in a step waits for a GPU, Hybrid's own look at its losses
    excepted.

    What has no meaning without gradients (gradient_checkpointing, optim, adam_beta1, another max_grad_norm than Trainer's, but for
    Hybrid's) is refused. With defer=True, callbacks that look at the weights call ``flush()`` first; evaluation, prediction and saving do.
    Where evaluation is to generate (Seq2SeqTrainingArguments), ``class ZOSeq2SeqTrainer(ZOTrainer, Seq2SeqTrainer): pass``.

    Args:
        full_batch: of MeZOSVRG, what is evaluated at anchors: "train", all training rows, or how many of them, drawn anew for each anchor
            by (args.seed, step). In batches of the evaluation's size. Default "train".
        objective: what to train on instead of the model's loss, differentiable or not: an object with loss(model, inputs) -> 0-dim tensor,
            a mean over rows, and scores(model, inputs) -> [rows, candidates], which are the predictions of ``predict`` and
            ``compute_metrics``. Inputs that the model does not know need remove_unused_columns=False. ``smooth = True`` says that
            differences of its loss are those of a smooth function, not of a count. Default None.
        trajectory: a path where ``zokern.record`` logs the steps. A resumed run continues the log. Not of Hybrid. Default None.
        check: before step 0 of a run that is not resumed call ``optimizer.check`` with the first batch, some 8 forward passes, and warn of
            each problem. The run is the same bits with it as without. Default True.
        directions: groups of processes that measure different points of a step on the same rows, as of ``zokern.DistributedClosure``.
            Default 1: all measure all points, of different rows.

    All other arguments are those of ``transformers.Trainer``.

    Attributes:
        checked: the ``zokern.Check`` of that; None where there was none.

    Raises:
        TypeError: another optimizer than zokern's.
        ValueError: no learning rate but Trainer's default, which is one for Adam; fp16, FSDP1, DeepSpeed, several GPUs in a process; with
            Hybrid: trajectory, a learning rate or weight decay for both halves; an argument that would do nothing.
    """

    model: Any
    objective: Any
    optimizer: Any
    optimizer_cls_and_kwargs: Any

    def __init__(
        self, model: Any = None, args: Any = None, *others: Any, full_batch: str | int = "train", objective: Any = None,
        trajectory: str | Path | None = None, check: bool = True, directions: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        self.directions = directions
        self.full_batch, self.objective, self.trajectory = full_batch, objective, trajectory
        self._micro_batches: list[Batch] = []  # of the step that is measured next
        self._autocast: torch.dtype | None = None
        self._record: zokern.trajectory.Recorder | None = None
        self.checked: zokern.Check | None = None
        self._checks, self.check_seconds = check, 0.0
        self._interval, self._run = FiniteMean(), FiniteMean()
        arguments.check(args, self)
        # Trainer, before it keeps these itself, would move the model.
        self.optimizer_cls_and_kwargs = options.get("optimizer_cls_and_kwargs")
        self.optimizer = (options.get("optimizers") or (None, None))[0]
        super().__init__(model, args, *others, **options)
        self.optimizer_cls_and_kwargs = self.optimizer_cls_and_kwargs or (named("mezo"), {})
        arguments.check_optimizer(self)
        # Every process weights its own losses when they are gathered.
        self.args.average_tokens_across_devices = False
        self._check_directions()
        self.add_callback(_InTheLoop(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:  # by accelerate's launcher
            raise ValueError(f"deepspeed {arguments.REFUSED['deepspeed']}")
        if getattr(self.accelerator, "scaler", None) is not None:
            raise ValueError(f"mixed precision {self.accelerator.mixed_precision} {arguments.REFUSED['fp16']}")
        # There are no gradients that a DDP wrapper could reduce; and weights that lie elsewhere stay there.
        placed = {"device_placement": False} if self._offloaded else {}
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True, **placed)
        # What has gradients is the optimizer's: a Hybrid may hold a part of a parameter, with a gradient of its own.
        clip = self.accelerator.clip_grad_norm_
        own = lambda: [p for group in self.zeroth_order.param_groups for p in group["params"]]  # noqa: E731
        self.accelerator.clip_grad_norm_ = lambda parameters, *norms, **named: clip(own(), *norms, **named)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make what ``optimizer_cls_and_kwargs`` asks for, unless an optimizer was given, of ``model`` or else the trainer's own."""
        self._cut()
        model = self.model if model is None else model
        distributed.broadcast_parameters(model)
        make, settings = self.optimizer_cls_and_kwargs
        if self.optimizer is None and getattr(make, "takes_model", False):
            self.optimizer = make(model, **settings)
        elif self.optimizer is None:
            rates = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            taken = make.declared() if hasattr(make, "declared") else rates
            given = {name: rate for name, rate in rates.items() if name in taken} | settings
            trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
            if "perturbation" in taken:
                given["perturbation"] = perturbation_of(model, given.get("perturbation"), make.derivative is None)
            groups: list[dict[str, Any]] = [{"params": trained}]
            if given.get("weight_decay"):
                decayed = set(self.get_decay_parameter_names(model))
                groups = [
                    {"params": [entry for entry in trained if entry[0] in decayed]},
                    {"params": [entry for entry in trained if entry[0] not in decayed], "weight_decay": 0.0},
                ]
            optimizer = make(groups, **given)
            if not isinstance(optimizer, ClosureOptimizer):
                raise TypeError(f"{make!r} made a {type(optimizer).__name__}: pass one that makes a zokern optimizer")
            self.optimizer = optimizer
        arguments.check_compiled(self)
        distributed.check_equal(self.zeroth_order)
        return self.optimizer

    @property
    def _offloaded(self) -> Any:
        """The ``zokern.Streamed`` of weights that lie elsewhere than where the model computes; None where they do not."""
        settings: dict[str, Any] = self.optimizer_cls_and_kwargs[1] if self.optimizer_cls_and_kwargs else {}
        kind = settings.get("perturbation") or getattr(self.zeroth_order, "_kind", None)
        return kind if getattr(kind, "offloaded", False) else None

    @property
    def _writing(self) -> AbstractContextManager:
        """Around whatever but the optimizer changes the weights."""
        kind = self._offloaded
        return kind.source.writing() if kind and kind.source else nullcontext()

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self._offloaded:
            super()._move_model_to_device(model, device)

    @property
    def zeroth_order(self) -> Any:
        """The optimizer itself, without accelerate's wrapper; None before training. A Hybrid as a whole: its ``zo`` is one half."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def flush(self) -> None:
        """Bring the weights to where the steps so far have led: ``optimizer.flush()``."""
        if self.zeroth_order is not None:
            self.zeroth_order.flush()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Measure; ``optimizer.step()`` moves. Return the step's loss at its last micro-batch, and 0 before that: a 0-dim float32 tensor.

        The arguments are those of ``transformers.Trainer.training_step``.
        """
        self._micro_batches.append(self._counted(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        model.eval()
        optimizer = self.zeroth_order
        closure_of = partial(distributed.DistributedClosure, directions=self.directions)
        closures = [closure_of(lambda: self._loss(model, batches), lambda: self._gradient(model, batches))]
        if optimizer.full_batch_due:
            _schedule_full_batch_rate(optimizer)
            step = optimizer.param_groups[0]["step"]
            closures.append(closure_of(lambda: self._loss(model, self._full_batches(step))))
        if self._checks and self.state.global_step == 0:
            self._check(optimizer, closures[0])
        loss = optimizer.measure(*closures).loss.to(self.args.device, torch.float32)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        self._interval.add(loss)
        self._run.add(loss)
        return loss

    def _check(self, optimizer: Any, closure: Any) -> None:
        """Whether a step will measure what it should."""
        if optimizer.perturbed is None:
            return
        begin = time.perf_counter()
        self.checked = optimizer.check(closure, smooth=self.objective is None or getattr(self.objective, "smooth", False))
        self.check_seconds = time.perf_counter() - begin
        if self.is_world_process_zero():
            for problem in self.checked.problems:
                warnings.warn(f"before step 0: {problem} (ZOTrainer(check=False) does not look)", RuntimeWarning, stacklevel=3)

    def _counted(self, inputs: dict[str, Any]) -> Batch:
        """-> (inputs, the number of labels or rows that their loss is a mean of, whether it is that of labels)."""
        items = None
        if self.objective is None:
            _, items = self.get_batch_samples(iter([inputs]), 1, self.args.device)
        return self._prepare_inputs(inputs), items if items is not None else find_batch_size(inputs), items is not None

    def _loss(self, model: Any, batches: Iterable[Batch]) -> Weighted:
        """-> (mean loss of batches, their weight), of this process."""
        losses, weights = zip(*(self._loss_of(model, *batch) for batch in batches))
        weight = sum(weights)
        loss: Any = losses[0] if len(losses) == 1 else sum(map(share, losses, weights, repeat(weight)))
        return loss, weight

    def _gradient(self, model: Any, batches: list[Batch]) -> Weighted:
        """As ``_loss``, with backward: one batch at a time, so that no more than its activations are held."""
        losses: list[Any] = []
        weight = sum(items for _, items, _ in batches)
        for batch in batches:
            loss, items = self._loss_of(model, *batch)
            losses.append(backpropagated(loss if len(batches) == 1 else share(loss, items, weight)))
        return sum(losses), weight

    def _loss_of(self, model: Any, inputs: dict[str, Any], items: Count, labels: bool) -> Weighted:
        """-> (mean loss of one batch, its weight). Normalised by its own count, it is right whether or not the model looks at that."""
        kwargs: dict[str, Any] = {"num_items_in_batch": at_least_one(items)} if labels else {}
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, dict(inputs), **kwargs)  # which may take entries out
        if self._autocast is None and isinstance(loss, torch.Tensor) and loss.dtype in SIXTEEN:
            self._autocast = loss.dtype
            return self._loss_of(model, inputs, items, labels)
        if self.zeroth_order.perturbed is not None:
            self.zeroth_order.perturbed.watch.loss(loss)  # before micro-batches are added up in float64
        return loss, items

    def _full_batches(self, step: int) -> Iterable[Batch]:
        """The batches of an anchor, of this process's share of the rows."""
        loader = self.callback_handler.train_dataloader
        rows: Sequence[int] = range(len(loader.dataset))
        if self.full_batch != "train":
            generator = torch.Generator().manual_seed(self.args.seed << 32 | step)
            rows = torch.randperm(len(rows), generator=generator)[: self.full_batch].tolist()
        mine, batches = self.share_of(rows, self.args.eval_batch_size)
        # With a generator of its own: the order of the minibatches is not disturbed.
        options = dict(collate_fn=loader.collate_fn, generator=torch.Generator())
        part = torch.utils.data.Subset(loader.dataset, mine)
        yield from map(self._counted, torch.utils.data.DataLoader(part, self.args.eval_batch_size, **options))
        for _ in range(batches - -(-len(mine) // self.args.eval_batch_size) if self._sharded else 0):  # others need this process for theirs
            inputs, items, labels = self._counted(loader.collate_fn([loader.dataset[rows[0]]]))
            yield inputs, items * 0, labels

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.objective.loss(model, inputs)
        return (loss, None) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        if self.objective is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = None if labels is None else self.compute_loss(model, inputs)
            scores = None if prediction_loss_only else self.objective.scores(model, inputs)
        return loss, scores, None if prediction_loss_only else labels

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        return torch.autocast(self.args.device.type, self._autocast) if self._autocast else nullcontext()

    def _choose_autocast(self) -> None:
        """A model in 16 bits with parts in float32 computes in 16 bits."""
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        sixteen = dtypes & set(SIXTEEN)
        if sixteen and torch.float32 in dtypes:
            self._autocast = sixteen.pop()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        resume_from_checkpoint = checkpoint.to_resume(resume_from_checkpoint, self.args)
        self._choose_autocast()
        self._interval, self._run = FiniteMean(), FiniteMean()
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
            return output._replace(training_loss=output.metrics["train_loss"])
        finally:
            self.flush()
            if self._record is not None:
                self._record.close()
                self._record = None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # resumed where all steps are done: Trainer would make one more
            self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with checkpoint.saving(folder, self):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._writing:
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        checkpoint.check(str(self.state.best_model_checkpoint))
        with self._writing:
            super()._load_best_model()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        self._choose_autocast()
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        self.flush()
        if self._record is not None:
            self._record.flush()
        super().save_model(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            if self.zeroth_order.derivative != "backward":
                logs.pop("grad_norm", None)
            logs.update(self._measured())
        for name, mean in (("loss", self._interval), ("train_loss", self._run)):
            if name in logs and (self.args.logging_nan_inf_filter or not mean.steps):
                logs[name] = mean.value(logs[name])
        if "loss" in logs:
            self._interval = FiniteMean()
        super().log(logs, *args, **kwargs)

    def _measured(self) -> dict[str, float]:
        """Of the newest step, for the log: this waits for the device."""
        optimizer, found = self.zeroth_order.perturbed, {}
        if optimizer is not None and optimizer.last is not None and optimizer.last.projected_grad is not None:
            grad = optimizer.last.projected_grad.double()
            found = {"projected_grad": grad if grad.numel() == 1 else grad.square().mean().sqrt()} | optimizer.losses_by_name()
            found = dict(zip(found, torch.stack([value.double().reshape(()) for value in found.values()]).tolist()))
        return found | {"skipped_steps": self.zeroth_order.skipped}

    def _begin_record(self, state: TrainerState) -> None:
        if self.trajectory is not None and (state.is_world_process_zero or self._sharded):
            name = getattr(getattr(self.model, "config", None), "_name_or_path", "")
            notes = {"model": name, "rows a step": self.get_total_train_batch_size(self.args)}
            settings = dict(notes=notes, every=max(1, int(state.logging_steps)), resume=self.zeroth_order.param_groups[0]["step"] > 0)
            self._record = zokern.record(self.zeroth_order, self.trajectory, model=self.model, **settings)


class _InTheLoop(TrainerCallback):
    """What the trainer does where Trainer's loop has no method to override."""

    def __init__(self, trainer: ZOTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer._begin_record(state)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._micro_batches.clear()  # of a step that was broken off

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.flush()  # before the best model is loaded over the weights


def _schedule_full_batch_rate(optimizer: ClosureOptimizer) -> None:
    """Schedulers know lr alone."""
    if (name := optimizer.full_batch_rate) is None:
        return
    for group in optimizer.param_groups:
        begin = group.setdefault(f"initial_{name}", group[name])
        if group.get("initial_lr"):
            group[name] = begin * (group["lr"] / group["initial_lr"])
