"""Losses without a gradient, answers that are written, and real rows through the whole chain."""

import pickle
import re
from functools import partial

import pytest
import torch
from task_rows import CASES

import zokern
from zokern import tasks
from zokern.tasks import Example, few_shot, reader, split
from zokern.tasks.metrics import normalized, token_f1

SQUAD = tasks.get("squad")


def question(context, answers, location="row 1"):
    return Example(CASES["squad"].row | dict(context=context), None, location, tuple(answers))


def written(model, tokenizer, prompt, most):
    """Greedy text after the prompt, one token at a time, alone and from the full logits."""
    ids = tokenizer(prompt.strip(" "))["input_ids"]
    made = []
    while len(made) < most:
        made.append(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax().item())
        if made[-1] == tokenizer.eos_token_id or "\n" in tokenizer.decode(made).strip():
            break
    return tokenizer.decode(made, skip_special_tokens=True).strip().partition("\n")[0].strip()


@pytest.mark.parametrize("adapter", [None, "lora", "prefix", "prompt"])
@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
@torch.no_grad()
def test_written_answers_and_their_f1(models, adapters, bpe, kind, adapter):
    asked = reader(SQUAD, "causal", bpe, objective="f1", max_new_tokens=6)
    contexts = ["Denver won.", "A much longer text, of which nobody knows the end, won."]
    template = "Title: Super_Bowl\nContext: {}\nQuestion: Who won?\nAnswer:"
    for seed in range(10):  # of the first model that writes two different answers of words
        model = models(kind, len(bpe), seed)
        model = adapters(model, adapter) if adapter else model
        alone = [written(model, bpe, template.format(context), 6) for context in contexts]
        if len({normalized(text) for text in alone} - {""}) == 2:
            break
    else:
        pytest.fail(f"no model writes two answers: {alone}")
    answers = [("nothing", alone[0] + " and more"), ("nothing of it",)]
    rows = [question(context, right) for context, right in zip(contexts, answers)]
    batch = asked.collate([asked.encode(row) for row in rows])
    assert asked.predictions(model, batch) == alone
    expected = [max(token_f1(text, (answer,)) for answer in right) for text, right in zip(alone, answers)]
    loss = asked.loss(model, batch)
    assert loss.dtype == torch.float32 and loss.dim() == 0
    assert loss.item() == pytest.approx(1 - sum(expected) / 2) and 0 < loss.item() < 1
    assert asked.evaluate(model, rows)["f1"] == pytest.approx(sum(expected) / 2)


@torch.no_grad()
def test_an_answer_ends_with_its_line(models, bpe):
    """A model that writes "yes", a line break and more, whatever it is asked."""
    model = models("opt", len(bpe))
    line = [*bpe(" Yes", add_special_tokens=False)["input_ids"], *bpe("\n", add_special_tokens=False)["input_ids"]]
    assert len(line) == 2 and bpe.decode(line[1:]) == "\n"
    yes, end = line
    head = model.get_output_embeddings()
    calls = []

    def write(module, args, output):
        calls.append(1)
        output[:] = 0
        output[:, -1, (yes, end, yes, yes)[min(len(calls) - 1, 3)]] = 1
        return output

    handle = head.register_forward_hook(write)
    asked = reader(SQUAD, "causal", bpe, max_new_tokens=20)
    assert asked.predictions(model, asked.collate([asked.encode(question("x", ["yes"]))])) == ["Yes"]
    handle.remove()
    assert len(calls) == 2  # it stopped there


@torch.no_grad()
def test_the_cross_entropy_of_a_written_answer(models, bpe):
    model = models("llama", len(bpe))
    rows = [question("Denver won.", ["Denver", "x"]), question("A much longer text won.", ["the whole of it"])]
    asked = reader(SQUAD, "causal", bpe)
    batch = asked.collate([asked.encode(row) for row in rows])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64, torch.uint8}
    losses = []
    for row in rows:
        prompt = f"Title: Super_Bowl\nContext: {row['context']}\nQuestion: Who won?\nAnswer:"
        before, ids = bpe(prompt)["input_ids"], bpe(f"{prompt} {row.answers[0]}\n")["input_ids"]
        log_probabilities = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses += [-log_probabilities[t - 1, ids[t]] for t in range(len(before), len(ids))]
    assert asked.loss(model, batch).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    with pytest.raises(tasks.BadInput, match="has no candidates to be scored"):
        asked.scores(model, batch)
    unknown = asked.collate([asked.encode(question("x", []))])
    assert len(asked.predictions(model, unknown)) == 1
    with pytest.raises(tasks.BadInput, match="has no label"):
        asked.loss(model, unknown)


@torch.no_grad()
def test_accuracy_and_f1_as_losses(models, bpe):
    model = models("opt", len(bpe))
    rows = [Example(CASES["cb"].row | dict(premise=f"It rained {i} times."), i % 3, "row") for i in range(9)]
    batch_of = {}
    for objective in ("accuracy", "f1"):
        asked = reader(tasks.get("cb"), "causal", bpe, objective=objective)
        batch = batch_of[objective] = asked.collate([asked.encode(row) for row in rows])
        found = asked.evaluate(model, rows)
        loss = asked.loss(model, batch)
        assert loss.dtype == torch.float32 and loss.dim() == 0 and loss.item() == pytest.approx(1 - found[objective], abs=1e-6)
    rows = [Example(CASES["multirc"].row | dict(question=f"Is it {i}?"), i % 2, "row") for i in range(8)]
    asked = reader(tasks.get("multirc"), "causal", bpe, objective="f1")
    batch = asked.collate([asked.encode(row) for row in rows])
    assert asked.loss(model, batch).item() == pytest.approx(1 - asked.evaluate(model, rows)["f1"], abs=1e-6)


@pytest.mark.parametrize("name", ["sst2", "rte"])
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_real_rows_through_the_whole_chain(data, models, bert, bpe, name, kind):
    task = tasks.get(name)
    rows = task.load(data / name, "train")
    drawn = split(rows, seed=1, train=24, validation=8, test=8)
    few, _ = few_shot(rows, 4, seed=1)
    assert [row.label for row in few] == [0] * 4 + [1] * 4
    tokenizer = bert if kind == "masked" else bpe
    model = models("bert" if kind == "masked" else "opt", len(tokenizer))
    for objective in ("cross-entropy", "accuracy"):
        asked = pickle.loads(pickle.dumps(reader(task, kind, tokenizer, max_length=96, objective=objective)))
        loader = torch.utils.data.DataLoader([asked.encode(row) for row in drawn.train], 8, collate_fn=asked.collate)
        optimizer = zokern.MeZO(model.parameters(), lr=1e-3, eps=1e-2, seed=0)
        for batch in loader:
            assert max(tensor.shape[1] for name, tensor in batch.items() if name == "input_ids") <= 96
            loss = optimizer.step(partial(asked.loss, model, batch))
            assert torch.as_tensor(loss).isfinite() and not optimizer.last.skipped
            if objective == "accuracy":
                for side in optimizer.last.losses:  # eighths
                    assert (torch.as_tensor(side) * 8).frac().abs() < 1e-5
    found = asked.evaluate(model, drawn.validation, batch_size=3)
    assert set(found) == {"accuracy"} and found["accuracy"] * 8 == pytest.approx(round(found["accuracy"] * 8))


def test_prompts_of_real_rows(data, bpe):
    rows = tasks.get("rte").load(data / "rte")
    task = tasks.get("rte")
    prompt = tasks.prompts.fill(task.masked.template, rows[0], "<mask>")
    assert prompt == "No Weapons of Mass Destruction Found in Iraq Yet? <mask>, weapons of Mass Destruction Found in Iraq."
    asked = reader(task, "causal", bpe, max_length=60)
    for row in rows[:200]:
        (ids, option), (same, other) = asked.encode(row)["candidates"]
        assert ids == same and len(ids) <= 59 and bpe.decode([*option, *other]) == "YesNo"
        assert re.search(r"is true\? Yes or No\?\n$", bpe.decode(ids))
