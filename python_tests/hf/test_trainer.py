"""ZOTrainer takes the steps that a plain loop takes, whatever Trainer does around them."""

import math
from functools import partial

import pytest
import torch
import transformers
from hf_cases import farthest, make, rows, same, weights

import zokern
from zokern.hf import ZOTrainer

OPTIMIZERS = {
    "MeZO": (zokern.MeZO, {"eps": 1e-3}),
    "MeZO q=2": (zokern.MeZO, {"q": 2, "seed": 7}),
    "MeZO one-sided": (zokern.MeZO, {"estimator": "one-sided"}),
    "MeZO deferred": (zokern.MeZO, {"defer": True}),
    "MeZO sparse": (zokern.MeZO, {"sparsity": 0.3}),
    "ZOAdam": (zokern.ZOAdam, {"lr": 1e-4}),
    "ZOMomentum": (zokern.ZOMomentum, {}),
    "ZOSign": (zokern.ZOSign, {"lr": 1e-4}),
    "ZOConservative": (zokern.ZOConservative, {}),
    "ForwardGradient": (zokern.ForwardGradient, {}),
}


class Batches:
    """A collator that keeps what it has made."""

    def __init__(self):
        self.made = []

    def __call__(self, features):
        self.made.append(transformers.default_data_collator(features))
        return dict(self.made[-1])


def by_hand(model, optimizer, batches, lr, steps):
    """The plain loop: eval() mode, lr falling linearly to 0. -> its losses."""
    model.eval()
    losses = []
    for step, batch in enumerate(batches[:steps]):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        losses.append(float(optimizer.step(lambda: model(**batch).loss)))  # noqa: B023
    optimizer.flush()
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_steps_are_those_of_a_plain_loop(name, trainer_of):
    kind, settings = OPTIMIZERS[name]
    model = "opt-lm"
    config = {"attn_implementation": "eager"} if name == "ForwardGradient" else {}
    collate = Batches()
    trainer = trainer_of(model, model=make(model, **config), optimizer=(kind, settings), trainer={"data_collator": collate})
    trainer.train()
    plain = make(model, **config)
    plain.config.use_cache = False
    optimizer = kind(plain.named_parameters(), **{"lr": 1e-3, **settings})
    losses = by_hand(plain, optimizer, collate.made, settings.get("lr", 1e-3), 6)
    assert same(weights(trainer.model), weights(plain)) and not same(weights(plain), weights(make(model)))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)  # Trainer adds them in float32
    assert trainer.zeroth_order.param_groups[0]["param_names"] == [name for name, _ in plain.named_parameters()]


def test_blocks_and_groups_of_their_own(trainer_of):
    model = make("opt-lm")
    head, rest = [], []
    for name, p in model.named_parameters():
        (head if "embed" in name else rest).append((name, p))
    groups = [{"params": head, "eps": 1e-2}, {"params": rest, "lr": 1e-4}]
    trainer = trainer_of(model=model, trainer={"optimizers": (zokern.MeZO(groups, lr=1e-3, eps=1e-3), None)})
    trainer.train()
    assert trainer.state.log_history[0]["projected_grad"] > 0  # the root mean square of two
    blocks = make("opt-lm")
    trainer = trainer_of(model=blocks, optimizer=(zokern.MeZO, {"blocks": blocks}), max_steps=2)
    trainer.train()
    assert len(trainer.zeroth_order.last.losses) == 2 * 4  # embeddings, two layers, the last norm


def test_weight_decay_has_the_groups_of_trainer(trainer_of, arguments):
    trainer = trainer_of(weight_decay=0.1, max_steps=1)
    trainer.train()
    stock = transformers.Trainer(make("opt-lm"), arguments(weight_decay=0.1))
    expected = stock.create_optimizer().param_groups
    groups = trainer.zeroth_order.param_groups
    assert [g["weight_decay"] for g in groups] == [g["weight_decay"] for g in expected] == [0.1, 0.0]
    assert [[p.shape for p in g["params"]] for g in groups] == [[p.shape for p in g["params"]] for g in expected]
    given = trainer_of(optimizer=(zokern.MeZO, {"weight_decay": 0.2, "lr": 3e-4}), weight_decay=0.1, max_steps=1)
    given.train()
    assert [g["weight_decay"] for g in given.zeroth_order.param_groups] == [0.2, 0.0]
    assert given.zeroth_order.param_groups[0]["initial_lr"] == 3e-4


@pytest.mark.parametrize("name", ["opt-lm", "opt-cls", "roberta"])
def test_accumulation_is_the_large_batch(name, trainer_of):
    """8 x 1 = 4 x 2 = 1 x 8, by tokens where a loss is their mean. Tolerance: losses near 4 differ by a few times 2**-22 in float32,
    over 2 eps = 2e-2 and times lr |z| = 4e-3, in each of 3 steps."""
    runs, logged = [], []
    for size, steps in ((8, 1), (2, 4), (1, 8)):
        trainer = trainer_of(
            name,
            optimizer=(zokern.MeZO, {"eps": 1e-2}),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=3,
            trainer={"train_dataset": rows(name, 24)},
        )
        trainer.train()
        runs.append(weights(trainer.model))
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    for other in runs[1:]:
        assert farthest(runs[0], other) < 2.5e-6
    assert logged[1] == pytest.approx(logged[0], rel=2e-5) == logged[2]
    assert farthest(runs[0], weights(make(name))) > 1e-4


def rows_seen(trainer):
    """-> a list that is filled with the token ids that every loss is of."""
    seen, loss = [], trainer._loss

    def looked(model, batches):
        batches = list(batches)
        seen.append(torch.cat([inputs["input_ids"] for inputs, *_ in batches]))
        return loss(model, batches)

    trainer._loss = looked
    return seen


def test_a_last_step_of_fewer_micro_batches(trainer_of):
    """10 rows, 4 micro-batches of 2 a step: the second step of the epoch has one. The third begins with the next epoch."""
    own = {"train_dataset": rows("opt-lm", 10), "check": False}
    trainer = trainer_of(gradient_accumulation_steps=4, per_device_train_batch_size=2, max_steps=3, trainer=own)
    seen = rows_seen(trainer)
    trainer.train()
    assert [len(ids) for ids in seen] == [8, 8, 2, 2, 8, 8]


class Means(torch.nn.Module):
    """Its loss is the mean over the labels in a batch, whatever Trainer has counted: without any it is not finite."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x, labels, **counted):
        return {"loss": torch.nn.functional.cross_entropy(self.linear(x), labels)}


@pytest.mark.parametrize("hybrid", [False, True], ids=["MeZO", "Hybrid"])
def test_a_micro_batch_without_labels_adds_nothing(hybrid, trainer_of):
    torch.manual_seed(0)
    model, x = Means(), torch.randn(8, 3)
    own = {}
    if hybrid:
        blocks = zokern.layers(model, blocks=[model.linear])
        own["optimizers"] = zokern.Hybrid(blocks, None, partial(torch.optim.SGD, lr=0.0), zokern.splits.Depth(0)), None
    expected = float(torch.nn.functional.cross_entropy(model.linear(x[:4]), torch.zeros(4, dtype=torch.long)).detach())
    data = [{"x": row, "labels": 0 if i < 4 else -100} for i, row in enumerate(x)]
    trainer = trainer_of(
        model=model, max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
        train_sampling_strategy="sequential", trainer={"train_dataset": data, **own},
    )  # fmt: skip
    trainer.train()
    assert trainer.zeroth_order.skipped == 0
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("what", ["should_epoch_stop", "should_training_stop"])
def test_a_step_that_is_broken_off_leaves_nothing(what, trainer_of):
    class Stop(transformers.TrainerCallback):
        stopped = 0

        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1 and not self.stopped:
                self.stopped = 1
                setattr(control, what, True)

    own = {"callbacks": [Stop()], "train_dataset": rows("opt-lm", 24), "check": False}  # three steps an epoch
    trainer = trainer_of(gradient_accumulation_steps=2, max_steps=4, trainer=own)
    seen = rows_seen(trainer)
    trainer.train()
    steps = 4 if what == "should_epoch_stop" else 1
    assert trainer.state.global_step == trainer.zeroth_order.param_groups[0]["step"] == steps
    assert [len(ids) for ids in seen] == [8] * 2 * steps


@pytest.mark.parametrize("defer", [False, True])
def test_what_is_raised_between_the_halves_leaves_settled_weights(defer, trainer_of):
    class Fail(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    trainer = trainer_of(optimizer=(zokern.MeZO, {"defer": defer}), trainer={"callbacks": [Fail()]}, lr_scheduler_type="constant")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    stopped = trainer_of(max_steps=2, lr_scheduler_type="constant")
    stopped.train()
    assert farthest(weights(trainer.model), weights(stopped.model)) < 1e-6  # there and back costs a rounding


def test_dropout_is_off_and_label_smoothing_is_on(trainer_of):
    losses = {}
    for smoothing in (0.0, 0.3):
        collate = Batches()
        trainer = trainer_of("opt-cls", label_smoothing_factor=smoothing, trainer={"data_collator": collate}, max_steps=1)
        trainer.model.config.dropout = 0.5
        for module in trainer.model.modules():
            module.dropout = 0.5
        trainer.train()
        losses[smoothing] = trainer.state.log_history[0]["loss"]
        plain = make("opt-cls").eval()
        with torch.no_grad():
            logits = plain(**{k: v for k, v in collate.made[0].items() if k != "labels"}).logits
        # The mean of both sides is the loss in the middle, up to the second order in eps = 1e-3.
        expected = torch.nn.functional.cross_entropy(logits, collate.made[0]["labels"], label_smoothing=smoothing)
        assert losses[smoothing] == pytest.approx(float(expected), rel=1e-3)
    assert losses[0.0] != losses[0.3]


def test_a_loss_of_ones_own(trainer_of):
    def loss_of(outputs, labels, num_items_in_batch=None):
        rows = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return rows / num_items_in_batch

    runs = []
    for size, steps in ((8, 1), (2, 4)):
        settings = dict(per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=2)
        trainer = trainer_of("roberta", trainer={"compute_loss_func": loss_of}, **settings)
        trainer.train()
        runs.append(weights(trainer.model))
    own = trainer_of("roberta", per_device_train_batch_size=8, max_steps=2)
    own.train()
    assert farthest(runs[0], runs[1]) < 1e-5 and farthest(runs[0], weights(own.model)) < 1e-5

    class Twice(ZOTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    twice = trainer_of("roberta", kind=Twice, per_device_train_batch_size=8, max_steps=2)
    twice.train()
    pairs = zip(twice.state.log_history[:1], own.state.log_history[:1])
    assert all(a["loss"] == pytest.approx(2 * b["loss"], rel=1e-6) for a, b in pairs)


def test_bf16_autocast_sees_fresh_weights(trainer_of):
    """Of a float32 model: the same under Trainer's bf16, within an autocast around everything, and by hand."""
    collate = Batches()
    first = trainer_of(bf16=True, optimizer=(zokern.MeZO, {"eps": 1e-2}), trainer={"data_collator": collate})
    first.train()
    around = trainer_of(bf16=True, optimizer=(zokern.MeZO, {"eps": 1e-2}))
    with torch.autocast("cpu", torch.bfloat16):
        around.train()
    plain = make("opt-lm").eval()
    optimizer = zokern.MeZO(plain.named_parameters(), lr=1e-3, eps=1e-2)
    for step, batch in enumerate(collate.made[:6]):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 6)

        def closure():
            with torch.autocast("cpu", torch.bfloat16):
                return plain(**batch).loss.float()  # noqa: B023

        optimizer.step(closure)
    assert same(weights(first.model), weights(plain)) and same(weights(around.model), weights(plain))
    assert first.state.log_history[0]["loss_plus"] != first.state.log_history[0]["loss_minus"]


@pytest.mark.parametrize("name, method", [("roberta", "full"), ("opt-cls", "lora"), ("opt-lm", "prefix")])
def test_a_model_in_16_bits_has_losses_of_float32(name, method, trainer_of):
    model = make(name, method, torch.bfloat16)
    trainer = trainer_of(
        name, method, model=model, max_steps=2, eval_strategy="steps", eval_steps=1, trainer={"eval_dataset": rows(name, 4)}
    )
    trainer.train()
    # A loss in bfloat16 has 8 bits; this one has more.
    losses = [entry["loss_plus"] for entry in trainer.state.log_history if "loss_plus" in entry]
    assert any(float(torch.tensor(x).bfloat16()) != x for x in losses) and math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16 if method == "full" else torch.float32}


@pytest.mark.parametrize("full_batch", ["train", 6])
def test_svrg_has_its_full_batch(full_batch, trainer_of):
    collate = Batches()
    settings = dict(lr=1e-3, lr_full=1e-2, q=3, eps=1e-2)
    trainer = trainer_of(
        optimizer=(zokern.MeZOSVRG, settings),
        trainer={"full_batch": full_batch, "data_collator": collate, "check": False},
        per_device_train_batch_size=5,
        per_device_eval_batch_size=8,
    )
    shown = rows_seen(trainer)
    trainer.train()
    count = 20 if full_batch == "train" else full_batch
    assert [len(ids) for ids in shown] == 2 * ([count] * 2 + [5] * 8)  # two anchors in six steps
    assert torch.equal(shown[0], shown[1]) and len(torch.unique(shown[0], dim=0)) == count
    if full_batch == 6:
        assert not torch.equal(shown[0], shown[10])  # drawn anew
        return
    plain = make("opt-lm").eval()
    optimizer = zokern.MeZOSVRG(plain.named_parameters(), **settings)
    everything = transformers.default_data_collator(rows("opt-lm"))
    minibatches = [batch for batch in collate.made if len(batch["labels"]) == 5]
    for step, batch in enumerate(minibatches[:6]):
        for group in optimizer.param_groups:
            group["lr"], group["lr_full"] = (rate * (1 - step / 6) for rate in (1e-3, 1e-2))
        optimizer.step(lambda: plain(**batch).loss, lambda: plain(**everything).loss)  # noqa: B023
    # The full batch is in parts of 8, 8 and 4: losses of float32 differ in the last bit, over 2 eps = 2e-2, times lr |z| = 4e-2.
    assert farthest(weights(trainer.model), weights(plain)) < 5e-6


def test_the_full_batch_does_not_disturb_the_minibatches(trainer_of):
    """Where the order of an epoch is drawn from torch's own generator."""
    orders = []
    for optimizer in ((zokern.MeZO, {}), (zokern.MeZOSVRG, {"lr": 1e-3, "q": 4})):
        settings = dict(max_steps=8, per_device_train_batch_size=5, accelerator_config={"use_seedable_sampler": False})
        trainer = trainer_of(optimizer=optimizer, trainer={"check": False}, **settings)
        seen = rows_seen(trainer)
        trainer.train()
        orders.append([ids for ids in seen if len(ids) == 5])
    mezo, svrg = orders[0][::2], orders[1][::4]  # 2 losses a step, and 4 between anchors, which are steps 0 and 4
    assert len(svrg) == 6 and all(map(torch.equal, [ids for i, ids in enumerate(mezo) if i % 4], svrg))


def test_schedules_move_every_rate(trainer_of):
    for scheduler, expected in (("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", None)):
        trainer = trainer_of(optimizer=(zokern.MeZO, {"lr": 1e-3}), lr_scheduler_type=scheduler, max_steps=4)
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        expected = expected or [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
        assert rates == pytest.approx([1e-3 * share for share in expected])
