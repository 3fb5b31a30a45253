"""One of two processes whose Trainer has a sharded model: python hf_sharded_worker.py OUT HOW, under torchrun's environment.

HOW: "tp" and "native" (FSDP2), where from_pretrained cuts the model; "fsdp2", where accelerate does; "directions", where each process has
it whole, and measures half of the points; "whole", one process alone.
"""

import os
import sys
from pathlib import Path

import torch
import transformers
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from directions_worker import refused
from peft import PeftModel
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import zokern
from zokern.hf import ZOTrainer, adapt
from zokern.shards import like, local, whole

RANK, PROCESSES = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
STEPS = 4
CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61,
    max_position_embeddings=32, initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip
# name -> (optimizer, its settings, dtype of the weights)
CASES = {
    "MeZO, bfloat16": (zokern.MeZO, {}, torch.bfloat16),
    "MeZOSVRG": (zokern.MeZOSVRG, {"q": 3, "lr_full": 1e-3}, torch.float32),
    "ZOAdam": (zokern.ZOAdam, {"weight_decay": 0.1}, torch.float32),
    "MeZO, LoRA": (zokern.MeZO, {}, torch.float32),
}


class Trainer(ZOTrainer):
    """accelerate cuts models, and knows of tensor parallelism, where there are accelerators alone: here it is told that there are."""

    def create_accelerator_and_postprocess(self):
        if PROCESSES > 1 and self.directions == 1:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def rows(count=37):
    ids = torch.randint(3, 61, (count, 9), generator=torch.Generator().manual_seed(1))
    return [dict(input_ids=row, labels=row) for row in ids]


def save_base(folder, **config):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**CONFIG.to_dict(), **config})).save_pretrained(folder)


def load(folder, how, dtype=torch.float32):
    cut = {}
    if how in ("tp", "native"):
        from transformers.distributed import DistributedConfig

        cut = dict(distributed_config=DistributedConfig(**{"tp_size" if how == "tp" else "fsdp_size": PROCESSES}))
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **cut)


@torch.no_grad()
def model_of(folder, how, name):
    model = load(folder, how, CASES[name][2])
    if "LoRA" in name:
        model, generator = adapt(model, "lora"), torch.Generator().manual_seed(1)
        for part, p in model.named_parameters():
            if "lora_A" in part:  # which peft draws otherwise for a sharded model
                local(p).copy_(local(like(torch.randn(p.shape, generator=generator), p)))
    return model


def saved(folder, base, name):
    if "LoRA" not in name:
        return load(folder, "whole")
    return PeftModel.from_pretrained(load(base, "whole"), folder)


def trainer_of(out, how, name, folder, run, **settings):
    cls, own, _ = CASES[name]
    cut = dict(fsdp=True, fsdp_config={"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}) if how == "fsdp2" else {}
    model = model_of(folder, how, name)
    batch = 8 // (1 if how in ("tp", "whole", "directions") else PROCESSES)
    args = TrainingArguments(
        output_dir=str(out / run), use_cpu=True, report_to=[], disable_tqdm=True, seed=5, logging_steps=1, max_steps=STEPS,
        per_device_train_batch_size=batch, per_device_eval_batch_size=3, learning_rate=1e-3,
        remove_unused_columns=False, **{"save_steps": 2, **cut, **settings},
    )  # fmt: skip
    settings = dict(optimizer_cls_and_kwargs=(cls, {"eps": 1e-2, "seed": 3, **own}), train_dataset=rows(), eval_dataset=rows(13))
    directions = PROCESSES if how == "directions" else 1
    return Trainer(model, args, trajectory=out / f"{run}.jsonl", directions=directions, **settings)


def weights(trainer):
    trainer.zeroth_order.layout.drop_gathered()
    return {name: whole(p.detach()).clone() for name, p in trainer.model.named_parameters()}


def counted(trainer):
    """How many batches a trainer evaluates."""
    calls, loss_of = [], trainer._loss_of
    trainer._loss_of = lambda *args: calls.append(1) or loss_of(*args)
    return calls


def run(out, how, name):
    where = f"{how}-{name.replace(', ', '-')}"
    trainer = trainer_of(out, how, name, out / "base", where)
    before = trainer.evaluate()["eval_loss"]
    calls = counted(trainer)
    trainer.train()
    found = dict(
        weights=weights(trainer), before=before, calls=len(calls), losses=[x["loss"] for x in trainer.state.log_history if "loss" in x]
    )
    found["theta"] = [whole(held["theta"]) for held in trainer.zeroth_order.state.values() if "theta" in held]
    found["kinds"] = sorted({type(p).__name__ for p in trainer.zeroth_order.layout.params})
    predicted = trainer.predict(rows(13))
    found["predicted"], found["labels"] = predicted.predictions.shape, torch.as_tensor(predicted.label_ids)
    trainer.save_model(str(out / f"{where}-saved"))
    if PROCESSES > 1:
        distributed.barrier()
    found["saved"] = {n: p.detach() for n, p in saved(out / f"{where}-saved", out / "base", name).named_parameters()}
    again = trainer_of(out, how, name, out / "base", where)
    again.train(resume_from_checkpoint=str(out / where / "checkpoint-2"))
    found["resumed"] = weights(again)
    return found


def main(out, how):
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    found = {name: run(out, how, name) for name in CASES}
    if how == "native":  # transformers ties weights after it has cut them
        trainer = trainer_of(out, how, "ZOAdam", out / "tied", "tied")
        found["tied"] = refused(trainer.train)
    torch.save(found, out / f"{how}-{RANK}.pt")
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
