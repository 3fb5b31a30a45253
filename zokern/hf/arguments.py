"""TrainingArguments that would do nothing here, or the wrong thing: refused by name, with the cure."""

from typing import TYPE_CHECKING, Any

from transformers import Seq2SeqTrainer, TrainingArguments

from ..optim import ClosureOptimizer

if TYPE_CHECKING:
    from .trainer import ZOTrainer

FIELDS = TrainingArguments.__dataclass_fields__
ADAMS_LR = FIELDS["learning_rate"].default
EVAL = "works in train() mode only, and the losses of a step are evaluated in eval() mode: leave it out"
CHECKPOINTS = f"{EVAL}; a step needs the memory of inference, and of a Hybrid zokern.splits.Depth keeps the activations of its upper blocks"
REFUSED = {
    "fp16": "scales the loss for gradients, and zeroth-order steps have none: pass bf16=True, or, but with Hybrid, load the model in "
    "float16",
    "deepspeed": "drives its own backward pass and optimizer: leave it out; a step needs the memory of inference",
    "parallelism_config": "is made from the model: leave it out, and load the model in parts, as from_pretrained(..., tp_plan='auto') does",
    "neftune_noise_alpha": EVAL,
    "gradient_checkpointing": CHECKPOINTS,
    "activation_checkpointing": CHECKPOINTS,  # of newer transformers
    **dict.fromkeys(
        ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        "is for the DDP wrapper, and there is none: leave it out; batches are split over the processes without it",
    ),
}
FSDP_1 = (
    "flattens parameters, whose shards do not say which elements they are: pass fsdp_config={'version': 2}, fsdp_version: 2 of accelerate"
)
GENERATION = dict.fromkeys(
    ("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config", "sortish_sampler"),
    "is for Seq2SeqTrainer, whose evaluation generates: pass it to both at once, "
    "class ZOSeq2SeqTrainer(zokern.hf.ZOTrainer, transformers.Seq2SeqTrainer): pass",
)
ADAMS = "is for an optimizer that Trainer would make: leave it out, and pass optimizer_cls_and_kwargs=(zokern.ZOAdam, {...})"
OPTIMIZERS = ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")


def check(args: Any, trainer: "ZOTrainer") -> None:
    """Raise ValueError for an argument that cannot be honoured, by name."""
    for name, cure in (REFUSED if isinstance(trainer, Seq2SeqTrainer) else REFUSED | GENERATION).items():
        if value := getattr(args, name, None):
            raise ValueError(f"{name}={value!r} {cure}")
    for name in OPTIMIZERS:
        value = getattr(args, name, None)
        if value not in (None, getattr(args, "default_optim", None), getattr(FIELDS.get(name), "default", None)):
            raise ValueError(f"{name}={getattr(value, 'value', value)!r} {ADAMS}")
    if getattr(args, "predict_with_generate", False) and trainer.objective is not None:
        raise ValueError("predict_with_generate=True with objective=, whose scores are the predictions: leave out one of the two")
    if getattr(args, "n_gpu", 0) > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process: launch one a GPU (torchrun, accelerate launch), or set CUDA_VISIBLE_DEVICES")


def check_compiled(trainer: "ZOTrainer") -> None:
    """Raise ValueError for a model that is to be compiled and whose parameters are to be exchanged while it runs."""
    zo = trainer.zeroth_order.perturbed
    if trainer.args.torch_compile and zo is not None and zo.param_groups[0].get("perturbation") == "streamed":
        raise ValueError(
            "torch_compile=True holds the weights where they are, and weights in 16 bits are streamed: leave it out, or pass "
            'optimizer_cls_and_kwargs=(zokern.MeZO, {"perturbation": zokern.Copied()})'
        )


def check_optimizer(trainer: "ZOTrainer") -> None:
    """Raise TypeError for another optimizer than zokern's, ValueError for an argument that does not go with it, by name."""
    args, optimizer, (make, settings) = trainer.args, trainer.optimizer, trainer.optimizer_cls_and_kwargs
    made = type(optimizer) if optimizer is not None else make if isinstance(make, type) else ClosureOptimizer
    if not issubclass(made, ClosureOptimizer):
        raise TypeError(
            f"{made.__name__} takes gradients, and there are none; here pass a zokern optimizer, such as "
            "optimizer_cls_and_kwargs=(zokern.MeZO, {...})"
        )
    if not made.replayable and trainer.trajectory is not None:
        raise ValueError(
            f"trajectory={str(trainer.trajectory)!r} with {made.__name__}, whose steps are not decided by a few numbers: leave it out; "
            "checkpoints resume the run"
        )
    usual = FIELDS["max_grad_norm"].default
    if made.derivative != "backward" and args.max_grad_norm not in (None, 0, usual):
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm:g} clips gradients, and there are none but Hybrid's: leave it at {usual:g}, or pass 0; "
            "zokern.ZOSign and ZOAdam take steps whose length does not follow the gradient's"
        )
    if optimizer is None and made.takes_model:
        for name, plain in (("learning_rate", ADAMS_LR), ("weight_decay", 0.0)):
            if getattr(args, name) != plain:
                raise ValueError(
                    f"{name}={getattr(args, name):g} is for one optimizer, and {made.__name__} has two: leave it at {plain:g}, and "
                    "give each its own, as in zo=functools.partial(zokern.MeZO, lr=1e-6), fo=functools.partial(torch.optim.AdamW, lr=1e-5)"
                )
    elif optimizer is None and "lr" not in settings and args.learning_rate == ADAMS_LR:
        raise ValueError(
            f"learning_rate={ADAMS_LR:g}, Trainer's default, is one for Adam: pass TrainingArguments(learning_rate=...), or lr among "
            "the optimizer's settings (zokern.hf.STARTING_POINTS has some)"
        )
    wanted = trainer.full_batch
    rows: Any = trainer.train_dataset
    if wanted != "train" and made is not ClosureOptimizer and not made.full_batch:
        raise ValueError(f"full_batch={wanted!r} is of MeZOSVRG, and the optimizer is a {made.__name__}: leave it out")
    if made.full_batch and rows is not None:
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise ValueError("train_dataset has no length or no rows by number, and MeZOSVRG needs its full batch: pass one that has")
        fewest = args.world_size
        if wanted != "train" and not (isinstance(wanted, int) and fewest <= wanted <= len(rows)):
            raise ValueError(f'full_batch={wanted!r} of {len(rows)} training rows: pass "train", or a number in [{fewest}, {len(rows)}]')
