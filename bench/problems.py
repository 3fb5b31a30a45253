"""What suite ``convergence`` minimises: a mean loss over training examples, of which a minibatch is seen at a time."""

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from . import minilm

CPU = torch.device("cpu")
FILES = "train.tsv", "test.tsv"  # of SST-2


class Problem:
    """A model with its first weights, and the examples that it is fitted to.

    Attributes:
        params: list of parameters.
        n: training examples.
        optimum: the lowest loss there is; None where nobody knows it.
    """

    optimum = None

    def __init__(self, x, y, model):
        self.x, self.y, self.model, self.n = x, y, model, len(x)
        self.params = list(model.parameters())

    def loss(self, rows=slice(None)):
        """Mean loss of these training examples; of all, where none are named."""
        return torch.nn.functional.cross_entropy(self.model(self.x[rows]), self.y[rows])

    def figures(self) -> dict:
        """What the final weights are judged by, beside the loss."""
        return {}


class LeastSquares(Problem):
    """|Xw - y|^2 / n in 100 dimensions, y = X w* + noise, all of them normal with variance 1; from w = 0.

    The paper writes no 1 / n, but its learning rates are far beyond what a sum over a batch of 32 allows.

    Reference: Gautam et al. 2024, "Variance-Reduced Zeroth-Order Methods for Fine-Tuning Language Models", B.2.
    """

    def __init__(self, seed, device=CPU, n=1000, d=100):
        generator = torch.Generator().manual_seed(seed)
        x, w, noise = (torch.randn(*size, generator=generator) for size in ((n, d), (d,), (n,)))
        y = x @ w + noise
        model = torch.nn.Linear(d, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        super().__init__(x.to(device), y.to(device), model.to(device))
        best = torch.linalg.lstsq(x.double(), y.double()[:, None]).solution
        self.optimum = float((x.double() @ best - y.double()[:, None]).square().mean())

    def loss(self, rows=slice(None)):
        return (self.model(self.x[rows])[:, 0] - self.y[rows]).square().mean()


class Classification(Problem):
    """Cross-entropy, judged by the accuracy on examples that were held out."""

    def __init__(self, train, test, model, device):
        super().__init__(*(tensor.to(device) for tensor in train), model.to(device))
        self.test = [tensor.to(device) for tensor in test]

    @torch.no_grad()
    def figures(self):
        x, y = self.test
        return {"test_accuracy": float((self.model(x).argmax(-1) == y).double().mean())}


class Digits(Classification):
    """scikit-learn's 1,797 handwritten digits of 8 x 8, a fifth of them held out; an MLP 64-32-16-10, as the paper's for MNIST."""

    def __init__(self, seed, device=CPU):
        torch.manual_seed(seed)
        sizes = (64, 32, 16, 10)
        layers = [part for i, o in zip(sizes, sizes[1:]) for part in (torch.nn.Linear(i, o), torch.nn.ReLU())]
        super().__init__(*digits(), torch.nn.Sequential(*layers[:-1]), device)


@cache
def digits():
    """-> (x, y) to train with, (x, y) held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), test_size=0.2, random_state=0, stratify=y)
    return parts[0::2], parts[1::2]


class MiniLM(Classification):
    """512 training sentences of SST-2, as in the paper; trained are MiniLM's last layers, the pooler and a new head.

    What lies below them is frozen, so that each sentence goes through it once, and what it gives is kept.

    Args:
        data: folder with the train.tsv and test.tsv of SST-2.
    """

    def __init__(self, seed, device=CPU, data=None):
        train, test, pooler = sentences(data)
        torch.manual_seed(seed)
        head = torch.nn.Linear(pooler["weight"].shape[0], 2)
        torch.nn.init.normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)
        dense = torch.nn.Linear(*pooler["weight"].shape[::-1])
        dense.load_state_dict(pooler)
        super().__init__(train, test, torch.nn.Sequential(dense, torch.nn.Tanh(), head), device)


@cache
def sentences(folder, n=512):
    """-> (x, y) to train with, (x, y) held out, the pooler's weights. x: what the pooler sees of each sentence, its first token."""
    tokenizer, model = minilm.tokenizer(), minilm.load()

    @torch.no_grad()
    def seen(rows):
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        texts = [[example["sentence"] for example in part] for part in parts]
        tokens = [tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt") for part in texts]
        hidden = torch.cat([model(**batch).last_hidden_state[:, 0] for batch in tokens])
        return hidden, torch.tensor([row.label for row in rows])

    train, held_out = examples(folder, n)
    return seen(train), seen(held_out), model.pooler.dense.state_dict()


class WholeMiniLM(Problem):
    """512 training sentences of SST-2; every parameter of MiniLM is trained, with a new head on its pooler.

    Args:
        data: as of ``MiniLM``.
        n, tested: training and test sentences.
    """

    def __init__(self, seed, device=CPU, data=None, n=512, tested=256):
        from zokern import tasks

        task = tasks.get("sst2")
        torch.manual_seed(seed)
        model = minilm.load("AutoModelForSequenceClassification", num_labels=2).to(device)
        self.reader = tasks.reader(task, "head", minilm.tokenizer(), max_length=64)
        train, held_out = examples(data, n)
        self.test = held_out[:tested]
        super().__init__([self.reader.encode(example) for example in train], None, model)

    def loss(self, rows=None):
        """Rows of like lengths go through the model together, so that few of their positions are padding."""
        rows = sorted(range(self.n) if rows is None else rows.tolist(), key=lambda i: len(self.x[i]["tokens"]["input_ids"]))
        parts = [[self.x[i] for i in rows[begin : begin + 16]] for begin in range(0, len(rows), 16)]
        return sum(self.reader.loss(self.model, self.reader.collate(part)) * len(part) for part in parts) / len(rows)

    @torch.no_grad()
    def mean_loss(self, rows=None):
        """Without what backpropagation would need."""
        return self.loss(rows)

    def figures(self):
        return {"test_accuracy": self.reader.evaluate(self.model, self.test, 64)["accuracy"]}


PROBLEMS = {"least squares": LeastSquares, "digits": Digits, "MiniLM, SST-2": MiniLM}


def maker(name, device, data=None):
    """seed -> the problem."""
    if name == "MiniLM, SST-2":
        return partial(MiniLM, device=device, data=Path(data))
    return partial(PROBLEMS[name], device=device)


def missing(name, data=None) -> str:
    """Why the problem cannot be had here; "" where it can."""
    if name == "digits" and not find_spec("sklearn"):
        return "there is no scikit-learn: pip install scikit-learn"
    if name == "MiniLM, SST-2":
        if reason := no_data(data):
            return reason
        return minilm.missing()
    return ""


def examples(folder, n):
    """-> n training rows of SST-2, always the same ones, and all of the test rows."""
    from zokern import tasks

    train, held_out = (tasks.get("sst2").load(str(Path(folder) / file)) for file in FILES)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:n].tolist()
    return [train[i] for i in chosen], held_out


def no_data(folder, *files) -> str:
    """Why there are no rows of SST-2; "" where there are. ``files``: those that are needed, FILES where none is named."""
    needed = files or FILES
    if folder and all((Path(folder) / file).is_file() for file in needed):
        return ""
    return f"pass --data with a folder that has the {' and '.join(needed)} of SST-2 (columns sentence and label)"
