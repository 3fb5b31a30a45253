"""What differs in Trainer with several processes: when a sharded model is cut, what is saved and loaded, who sees which rows."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import recursively_apply
from safetensors.torch import load_file
from torch.utils._pytree import tree_map_only
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import SaveStrategy

import zokern

from ..errors import BadInput
from ..shards import is_sharded, like, local, whole
from . import arguments

T = TypeVar("T")


class ShardedTrainer(Trainer):
    """Trainer of a model that lies in parts on several processes: one that ``from_pretrained`` has cut (``tp_plan="auto"``, or
    ``distributed_config=DistributedConfig(...)`` for tensor parallelism, FSDP2 and both), or that accelerate's FSDP2 is to cut
    (``TrainingArguments(fsdp=True)``, ``accelerate launch --use_fsdp --fsdp_version 2``), which is done before the optimizer is made, so
    that it holds the shards. Checkpoints hold whole tensors, as those of one process do.
    """

    model: Any
    accelerator: Any
    directions = 1  # groups of processes that measure different points
    optimizer: Any
    lr_scheduler: Any
    _cuts = False  # whether accelerate's FSDP2 is to cut the model

    def __init__(self, model: Any = None, args: Any = None, *others: Any, **options: Any) -> None:
        loaded, strategy = getattr(model, "is_distributed_loading_by_transformers", False), getattr(args, "save_strategy", None)
        if (getattr(model, "_tp_size", None) or 1) > 1 and not _is_cut(model):
            raise ValueError(
                "the model's tensor parallelism keeps plain tensors, which do not say which elements they are: pass one that transformers "
                ">= 5.16 has loaded"
            )
        if loaded and strategy is not None:  # Trainer refuses to save the states of optimizers that it cannot gather
            args.save_strategy = SaveStrategy.NO
        try:
            super().__init__(model, args, *others, **options)
        finally:
            if loaded and strategy is not None:
                args.save_strategy = strategy
        if self._cuts:  # from here on as a model that was cut when it was loaded
            self.is_fsdp_enabled, self.is_distributed_loading_by_transformers = False, True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            if getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
                raise ValueError(f"fsdp of version 1 {arguments.FSDP_1}")
            self._cuts = True
            self.accelerator.prepare = partial(_prepared, self.accelerator, self.accelerator.prepare)
            self.accelerator.prepare_model = lambda model, *args, **named: model
        if (size := self._processes_of_a_row) > 1:  # each of which has the same row, and the same numbers of it
            gather = self.accelerator.gather
            self.accelerator.gather = lambda found: recursively_apply(partial(_once, size), gather(found))

    @property
    def _processes_of_a_row(self) -> int:
        return getattr(self.model, "_tp_size", None) or 1

    def _check_directions(self) -> None:
        zokern.DistributedClosure(lambda: 0.0, directions=self.directions)  # a divisor of the processes
        if self.directions > 1 and (self._cuts or self._sharded):
            raise ValueError(
                f"directions={self.directions} with a sharded model, of which Trainer knows one batch alone: leave it out, or call "
                "optimizer.step(zokern.DistributedClosure(closure, directions=...)) in a loop of your own"
            )

    def get_train_dataloader(self) -> Any:
        if self.directions == 1:
            return super().get_train_dataloader()
        each = self.args.world_size // self.directions  # of a group, each of which has the whole batch
        group = {"num_processes": each, "process_index": self.args.process_index % each}
        states = PartialState._shared_state, AcceleratorState._shared_state
        known = [{name: shared[name] for name in group} for shared in states]
        try:
            for shared in states:
                shared |= group
            return super().get_train_dataloader()
        finally:
            for shared, own in zip(states, known):
                shared |= own

    def get_total_train_batch_size(self, args: Any) -> int:
        return super().get_total_train_batch_size(args) // self.directions

    @property
    def _sharded(self) -> bool:
        return _is_cut(self.model)

    def _cut(self) -> None:
        """Let accelerate cut the model, where that has not been done."""
        if self._cuts and not self._sharded:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            fsdp2_prepare_model(self.accelerator, self.model)
            self.accelerator._models.append(self.model)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._cut()
        return super().evaluation_loop(*args, **kwargs)

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer divides the count by the processes that have the same row, for a sum over all; here each has its own count."""
        items = super()._get_num_items_in_batch(*args, **kwargs)
        return items if items is None else items * self._processes_of_a_row

    def share_of(self, rows: Sequence[int], batch: int) -> tuple[list[int], int]:
        """Divide rows among processes.

        Args:
            rows: numbers of rows.
            batch: rows at a time.

        Returns:
            Those that this process sees, and in how many batches all see theirs: a forward pass takes all of them.
        """
        size, each = self._processes_of_a_row, self.args.world_size // self.directions
        here, there = self.args.process_index % each // size, each // size
        return list(rows[here::there]), -(-len(rows) // (there * batch))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self._cuts and self._sharded and state_dict is None:
            state_dict = {name: whole(tensor).cpu() for name, tensor in self.model.state_dict().items()}
            if not self.args.should_save:
                return
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered(self.optimizer.state_dict())  # for which all are needed
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not (self._cuts or self._sharded):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        self._cut()
        load(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self._sharded:
            load(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()


def _is_cut(model: Any) -> bool:
    """Also where FSDP2 has left all parameters gathered."""
    return model is not None and (any(map(is_sharded, model.parameters())) or any(hasattr(module, "reshard") for module in model.modules()))


def _prepared(accelerator: Any, prepare: Any, *given: Any, **named: Any) -> Any:
    """accelerate wants FSDP2's model and optimizer at once, to cut the one and to exchange the parameters of the other."""
    if len(given) == 1 and isinstance(given[0], torch.optim.Optimizer):
        return accelerator.prepare_optimizer(*given)
    return prepare(*given, **named)


def _once(processes: int, gathered: torch.Tensor) -> torch.Tensor:
    """Of what all processes have found, in the order of ranks, that of the first of each group that has the same rows."""
    if not gathered.dim():
        return gathered
    return gathered.unflatten(0, (-1, processes, len(gathered) // torch.distributed.get_world_size()))[:, 0].flatten(0, 1)


def gathered(state: T) -> T:
    """A state with the whole of each sharded tensor in it, in host memory. All processes call this at once."""
    made: T = tree_map_only(torch.Tensor, lambda tensor: whole(tensor).cpu() if is_sharded(tensor) else tensor, state)
    return made


@torch.no_grad()
def load(model: Any, folder: Path) -> None:
    """Bring whole tensors of a checkpoint into a model, each process those elements that it holds.

    Raises:
        BadInput: a parameter of the model is in no file.
    """
    for module in model.modules():
        if hasattr(module, "reshard"):  # or its parameters would be copies
            module.reshard()
    targets, files = model.state_dict(), sorted(folder.glob("model*.safetensors"))
    if (adapter := folder / "adapter_model.safetensors").is_file():  # whose names lack the adapter's own
        active = getattr(model, "active_adapters", ["default"])
        own = (active() if callable(active) else active)[0]
        within = {name: part for name, part in targets.items() if own in name.split(".")}
        targets, files = {name.replace(".modules_to_save", "").replace(f".{own}", ""): part for name, part in within.items()}, [adapter]
    held: dict[str, torch.Tensor] = {}
    for file in files:
        held |= load_file(file)
    tied = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in held}
    of = dict(model.named_parameters(remove_duplicate=False))
    for name, target in targets.items():
        if name in held:
            local(target).copy_(local(like(held[name], target)))
        elif id(of.get(name)) not in tied:
            raise BadInput(f"checkpoint {str(folder)!r} has no {name!r}: resume it with the processes and the transformers that saved it")
