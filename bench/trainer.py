"""Suite ``trainer``: a step of ZOTrainer beside one of a plain loop, full fine-tuning, in one run."""

import copy
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

import zokern

from . import minilm, record
from .cases import Trained
from .models import build
from .oracle import EPS, Refused, check_step
from .timing import Samples

TRAINER, PLAIN = "zokern.hf.ZOTrainer", "zokern.MeZO, plain loop"
LR, WARM = 1e-6, 3
ROWS = 512


def missing(case: Trained) -> str:
    """Why this cannot run here; "" where it can."""
    absent = [name for name in ("transformers", "peft", "accelerate") if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install 'zokern[bench]'"
    return minilm.missing() if case.model == "MiniLM" else ""


def measure(case: Trained, device) -> list[dict]:
    """Each of Trainer's steps is followed by one of the plain loop, on the same rows of a model of its own. -> records, one a candidate.

    Trainer's time is all that passes between two steps of the plain loop: loading, the step, the schedule, its callbacks, logging.

    Raises:
        Refused: a step is wrong, or the weights of the two are not the same in the end.
    """
    import transformers

    from zokern.hf import ZOTrainer

    torch.set_num_threads(case.threads)
    rows = rows_of(case)
    ours = model_of(case, device)
    first = {name: value.to(device) for name, value in transformers.default_data_collator(rows[: case.batch]).items()}
    check_step(ours.named_parameters(), lambda: ours(**first).loss, LR)
    theirs = copy.deepcopy(ours)
    loop = plain_loop(ours, rows, case)
    times = {TRAINER: [], PLAIN: []}

    class Between(transformers.TrainerCallback):
        start = None

        def on_step_end(self, args, state, control, **kwargs):
            synchronize(device)
            now = time.perf_counter()
            if self.start is not None:
                times[TRAINER].append(now - self.start)
            next(loop)
            synchronize(device)
            self.start = time.perf_counter()
            times[PLAIN].append(self.start - now)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.batch,
            max_steps=case.steps + WARM,
            logging_steps=case.logging_steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            dataloader_drop_last=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
        )
        trainer = ZOTrainer(
            theirs,
            arguments,
            train_dataset=rows,
            optimizer_cls_and_kwargs=(zokern.MeZO, {"eps": EPS}),
            callbacks=[Between()],
            check=False,
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it would print into the table
        trainer.train()
    if not all(map(torch.equal, theirs.parameters(), ours.parameters())):
        raise Refused(f"{case}: ZOTrainer and the plain loop, given the same rows, do not end with the same weights")
    samples = {name: Samples(tuple(seconds[-case.steps :])) for name, seconds in times.items()}

    def describe(name):
        return {
            "suite": "trainer",
            "op": "step",
            **record.backend(device, True),
            "dtype": "fp32",
            "n": sum(p.numel() for p in theirs.parameters()),
            "terms": 1,
            "threads": case.threads,
            "timer": "wall",
            "model": case.model,
            "batch": case.batch,
            "tokens": case.tokens,
            "logging_steps": case.logging_steps,
            "over_plain": samples[name].median / samples[PLAIN].median - 1,
        }

    return record.lines(device, samples, PLAIN, PLAIN, describe)


def plain_loop(model, rows, case):
    """A generator that takes one step each time."""
    from transformers import default_data_collator

    model.eval()
    optimizer = zokern.MeZO(model.named_parameters(), lr=LR, eps=EPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loader = torch.utils.data.DataLoader(rows, case.batch, collate_fn=default_data_collator, drop_last=True)
    total, step = 0.0, 0
    while True:
        for batch in loader:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            total += optimizer.step(lambda: model(**batch).loss)  # noqa: B023
            schedule.step()
            step += 1
            if step % case.logging_steps == 0:
                print(f"step {step}: loss {float(total) / case.logging_steps:.4f}", file=sys.stderr)
                total = 0.0
            yield step


def model_of(case, device):
    if case.model != "MiniLM":
        return build(case.model, "fp32", device)
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return minilm.load("AutoModelForSequenceClassification", num_labels=2).to(device)


def rows_of(case) -> list[dict]:
    """ROWS rows of as many tokens each: SST-2's sentences, padded, where there are some, else random tokens."""
    generator = torch.Generator().manual_seed(0)
    if case.model != "MiniLM":
        ids = torch.randint(4, 128, (ROWS, case.tokens), generator=generator)
        return [{"input_ids": row, "labels": row} for row in ids]
    if case.data is None:
        ids = torch.randint(1000, 30000, (ROWS, case.tokens), generator=generator)
        mask = torch.ones(case.tokens, dtype=torch.long)
        return [{"input_ids": row, "attention_mask": mask, "labels": i % 2} for i, row in enumerate(ids)]
    from zokern.tasks.rows import read

    found = read(str(Path(case.data, "train.tsv"))).rows[:ROWS]
    shape = dict(padding="max_length", truncation=True, max_length=case.tokens, return_tensors="pt")
    tokens = minilm.tokenizer()([row["sentence"] for row in found], **shape)
    return [{**{name: tokens[name][i] for name in tokens}, "labels": int(row["label"])} for i, row in enumerate(found)]


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
