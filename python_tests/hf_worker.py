"""One of several processes of a run: python hf_worker.py OUT, under torchrun's environment. Saves what each case came to."""

import dataclasses
import gc
import os
import sys
from functools import partial
from pathlib import Path

import torch
import transformers
from hf_cases import make, rows, weights

import zokern
from zokern import distributed
from zokern.hf import ZOTrainer

HYBRID = dict(zo=partial(zokern.MeZO, lr=1e-3, eps=1e-2), fo=partial(torch.optim.SGD, lr=1e-2, momentum=0.9), split=zokern.splits.Depth(1))
LISA = zokern.splits.LISA(gamma=1, every=2, seed=4)
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
STEPS = 4
# name -> (model, method, optimizer, settings of TrainingArguments, dtype of the weights if not float32)
CASES = {
    "MeZO by tokens": ("opt-lm", "full", (zokern.MeZO, {"eps": 1e-2}), {}),
    "MeZO by rows": ("opt-cls", "lora", (zokern.MeZO, {"eps": 1e-2, "q": 2}), {"gradient_accumulation_steps": 2}),
    "one-sided, bf16": ("roberta", "full", (zokern.MeZO, {"eps": 1e-2, "estimator": "one-sided"}), {"bf16": True}),
    "weights in bf16, streamed": ("opt-lm", "full", (zokern.MeZO, {"eps": 1e-2}), {}, torch.bfloat16),
    "weights in bf16, copied": ("opt-lm", "full", (zokern.MeZO, {"eps": 1e-2, "perturbation": "copied"}), {}, torch.bfloat16),
    "ZOConservative": ("opt-cls", "full", (zokern.ZOConservative, {"eps": 1e-2}), {}),
    "MeZOSVRG": ("opt-lm", "full", (zokern.MeZOSVRG, {"eps": 1e-2, "lr": 1e-3, "lr_full": 1e-3}), {"per_device_eval_batch_size": 3}),
    "ForwardGradient": ("opt-lm", "full", (zokern.ForwardGradient, {}), {}),
    "Hybrid by tokens": ("opt-lm", "full", (zokern.Hybrid, HYBRID), {"learning_rate": 5e-5, "gradient_accumulation_steps": 2}),
    "Hybrid, two forwards": ("opt-cls", "full", (zokern.Hybrid, {**HYBRID, "share_forward": True}), {"learning_rate": 5e-5}),
    "Hybrid, LISA, the rest frozen": ("opt-lm", "full", (zokern.Hybrid, {**HYBRID, "zo": None, "split": LISA}), {"learning_rate": 5e-5}),
}


class Broken(ZOTrainer):
    """In step 2 the loss of the last process is not finite, where it is differentiated."""

    def compute_loss(self, *args, **named):
        loss = super().compute_loss(*args, **named)
        here = self.state.global_step == 2 and self.args.process_index == PROCESSES - 1 and torch.is_grad_enabled()
        return loss * float("nan") if here else loss


def run(out, name, method, optimizer, settings, dtype=torch.float32, spoil=0, seed=0, kind=ZOTrainer):
    """A run with 4 rows a step and process, or as many in one; ``spoil``: how far rank 1's weights are from rank 0's."""
    model = make(name, method, dtype, attn_implementation="eager")
    if spoil:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(spoil)
    batch = 8 // PROCESSES // settings.get("gradient_accumulation_steps", 1)
    args = transformers.TrainingArguments(
        output_dir=str(out / "run"),
        use_cpu=True,
        ddp_backend="gloo" if PROCESSES > 1 else None,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        seed=5,
        per_device_train_batch_size=batch,
        logging_steps=1,
        max_steps=STEPS,
        **{"learning_rate": 1e-3, **settings},
    )
    cls, own = optimizer
    own = {**own, "zo": own["zo"] and partial(own["zo"], seed=seed)} if cls is zokern.Hybrid else {**own, "seed": seed}
    trainer = kind(model, args, optimizer_cls_and_kwargs=(cls, own), train_dataset=rows(name, 32), eval_dataset=rows(name, 6))
    calls = []
    gather = torch.distributed.all_gather
    torch.distributed.all_gather = lambda every, mine, *more: calls.append(mine.numel()) or gather(every, mine, *more)
    try:
        trainer.train()
    finally:
        torch.distributed.all_gather = gather
    assert trainer.model_wrapped is trainer.model  # no DDP around it
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return dict(
        weights=weights(model),
        theta={name: state["theta"] for name, p in model.named_parameters() if "theta" in (state := trainer.zeroth_order.state.get(p, {}))},
        perturbation=trainer.zeroth_order.param_groups[0].get("perturbation"),
        losses=losses,
        checked=trainer.checked and dataclasses.asdict(trainer.checked),
        eval_loss=trainer.evaluate()["eval_loss"],
        skipped=trainer.zeroth_order.skipped,
        collectives=[n for n in calls if n > 1],  # Trainer has some of one number
    )


def gradients(rank):
    """What ``average_gradients`` makes of gradients that one process has alone, of a scalar's, and of those of weight 0."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((), (3,), (2,))]
    found = []
    for weight in (1 + 2 * rank, 3 * rank):
        params[0].grad = torch.tensor(4.0 * (1 + rank)) if weight else torch.tensor(float("nan"))
        params[1].grad = torch.tensor([4.0, 8.0, 12.0]) if rank else None
        distributed.average_gradients(params, torch.tensor(weight))
        found.append([p.grad for p in params])
    return found


def main(out):
    torch.set_num_threads(1)
    gc.freeze()  # what has been imported lives on: Trainer looks for garbage in every run
    rank = int(os.environ.get("RANK", "0"))
    found = {case: run(out, *settings) for case, settings in CASES.items()}
    found["skipped"] = run(out, *CASES["Hybrid by tokens"], kind=Broken)
    if PROCESSES > 1:
        found["spoiled"] = run(out, *CASES["MeZO by tokens"], spoil=0.1 * rank)
        try:
            run(out, *CASES["MeZO by tokens"], seed=rank)
        except ValueError as error:
            found["refused"] = str(error)
        model, method, (cls, own), settings = CASES["Hybrid, two forwards"]
        try:
            run(out, model, method, (cls, {**own, "share_forward": rank == 1}), settings)
        except ValueError as error:
            found["refused hybrid"] = str(error)
        found["gradients"] = gradients(rank)
    torch.save(found, out / f"{PROCESSES}-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
