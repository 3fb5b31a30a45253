"""Everything that decides a run of zokern evolve, each option with the one line that says what it is."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch

from ..engines.generate import CACHES
from ..errors import BadInput
from ..finetune.options import fitting, option, title
from ..finetune.run_settings import DTYPES, Natural, Positive, RunSettings, Seed, free
from ..finetune.settings import LORA, VIRTUAL
from ..optim import optimizers
from .rewards import FORMS

TAKEN = {"model": " (--model)", "dtype": " (--dtype)", "tensor_parallel_size": " (--tensor-parallel)", "worker_extension_cls": ""}
ENGINES = ("local", "vllm")
Temperature = Annotated[float, "a number >= 0", lambda x: 0 <= x < math.inf]


def takers() -> tuple[str, ...]:
    """Optimizers that can climb rewards."""
    return tuple(name for name, cls in optimizers().items() if "maximize" in cls.declared())


@dataclass(frozen=True)
class Settings(RunSettings):
    """What to fine-tune by rewards, and how. ``checked()`` fills in what follows from the rest.

    Each field is an option of ``zokern evolve``, and its metadata's ``help`` says what it is (docs/command_line.md): max_new_tokens is
    --max-new-tokens. ``optimizer_settings`` holds those of the optimizer, by name.
    """

    model: str | None = option("Local folder, GGUF file or hub id of a causal language model.")
    trust_remote_code: bool = option("Run the Python code that comes with --model. Read it first.", False)
    data: str | None = option("csv, tsv, json, jsonl or parquet file, or a hub data set (name or name:config): one prompt a row.")
    eval_data: str | None = option("The same, for held-out rows. Without it: a fifth of --data.")
    prompt: str | None = option("Column of prompts, texts or lists of chat messages. Without it: prompt, messages or question.")
    reward: tuple[str, ...] = option(f"What a completion is worth, given once or several times: {FORMS}.", (), several=True)
    reward_weights: tuple[float, ...] = option("One a reward, as '1,0.1'. Without it: 1 each.", ())
    rows: Natural = option("Prompts an iteration, drawn anew for each. Every member of the population answers all of them.", 64)
    max_new_tokens: Natural = option("Tokens of a completion, at most.", 64, "max_completion_length")
    temperature: Temperature = option("0: the likeliest token. Above: drawn, by a seed of each member's own.", 0.0)
    stop: tuple[str, ...] = option("Text where a completion ends; may be given several times.", (), several=True)
    batch_size: Natural = option("Prompts that the model answers at once.", 64, "generation_batch_size")
    cache: str = option("Of keys and values: dynamic grows; static has its full size from the start.", "dynamic", choices=CACHES)
    engine: str = option("What writes: local, the model in this process; vllm.", "local", choices=ENGINES)
    engines: Natural | None = option("Of vllm: how many, each in an actor of Ray. Without it: one, without Ray.")
    tensor_parallel: Natural = option("Workers of an engine, among which it divides the model.", 1, "tensor_parallel_size")
    engine_option: tuple[str, ...] = option("Argument of vllm.LLM, as NAME=VALUE; may be given several times.", (), several=True)
    server: tuple[str, ...] = option("URL of a running vllm serve, in place of --engines; may be given several times.", (), several=True)
    adapter: tuple[str, ...] = option("What is trained: full, lora, dora, prefix, prompt, or patterns of parameter names.", ("full",))
    rank: Natural | None = option("Of LoRA and DoRA. Without it: 8.", None, "lora_r")
    virtual_tokens: Natural | None = option("Of prefix and prompt tuning. Without it: 5, or 10 of prompt.", None, "num_virtual_tokens")
    optimizer: str = option(lambda: f"One of {', '.join(takers())}.", "es", choices=takers)
    lr: Positive | None = option("Learning rate. Without it: of es half of --sigma, of others their own.", None, "learning_rate")
    optimizer_settings: dict[str, object] = field(default_factory=dict)
    seed: Seed = option("Fixes the split, the prompts of each iteration and the noise.", 0)
    steps: Natural = option("Iterations: each is one update of the weights.", 100, "max_steps", "iterations")
    eval_every: Natural = option("Iterations between evaluations on held-out rows.", 10, "eval_steps")
    keep: str = option("Weights that are saved: last, or best, of the evaluation with the best reward.", "last", choices=("last", "best"))
    dtype: str = option("float32, bfloat16 or float16.", "float32", choices=DTYPES)
    device: str | None = option("cpu or cuda. Without it: a GPU where there is one.")
    out: str | None = option("Folder for model, curve and logs. Without it: zokern-evolve, or -2, ...", None, "output_dir")
    overwrite: bool = option("Replace an earlier run in --out.", False)

    lr_ratio = offload = None  # options of finetune's models

    @classmethod
    def optimizers(cls) -> tuple[str, ...]:
        """Names of the optimizers that can climb rewards."""
        return takers()

    def checked(self) -> "Settings":
        """Return the same with what follows from the rest filled in, the learning rate excepted.

        Raises:
            BadInput: a value of another type or out of range, or options that do not go together, by the names of the options.
        """
        given: Settings = fitting(self)
        settings = replace(
            given,
            **given._local(),
            optimizer_settings=given._optimizer_settings(),
            adapter=given.adapter or ("full",),
            device=given.device or ("cuda" if torch.cuda.is_available() and given.engine == "local" else "cpu"),
            out=given.out or free("zokern-evolve"),
        )
        for fault in settings._faults():
            raise BadInput(fault)
        return settings

    def _faults(self) -> Iterator[str]:
        """What does not go together, the first fault first."""
        adapters = set(self.adapter)
        for name, what in (("model", "a causal language model's folder, GGUF file or hub id"), ("data", "a file or a hub data set")):
            if getattr(self, name) is None:
                yield f"{title(name)} is missing: pass {what}"
        for name, fits, cure in (
            ("rank", adapters & LORA, "is of LoRA and DoRA: pass --adapter lora, or leave it out"),
            ("virtual_tokens", adapters & VIRTUAL, "is of prefix and prompt tuning: pass --adapter prefix, or leave it out"),
        ):
            if getattr(self, name) and not fits:
                yield f"{title(name)} {cure}"
        yield from self._faults_of_engines(adapters)
        if not all(self.stop):
            yield "--stop '' ends a text before it begins: leave it out, or pass a text"
        if "head" in adapters:
            yield "--adapter head: a model that writes has no head of its own: pass full, lora, dora, prefix, prompt or patterns"
        yield from self._faults_of_population()

    def _faults_of_population(self) -> Iterator[str]:
        if (mirrored := self.optimizer_settings.get("mirrored")) and int(str(self.optimizer_settings.get("population", 2))) % 2:
            yield f"--population {self.optimizer_settings['population']} with --mirrored {mirrored}: members are pairs: pass an even number"

    def options(self) -> dict[str, Any]:
        """``engine_option`` by name: values as JSON has them, else text."""
        found = dict[str, Any]()
        for name, _, value in (given.partition("=") for given in self.engine_option):
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found

    def _faults_of_engines(self, adapters: set[str]) -> Iterator[str]:
        own = {"engines": self.engines, "server": self.server, "engine_option": self.engine_option}
        own["tensor_parallel"] = self.tensor_parallel > 1
        if self.engine == "local":
            yield from (f"{title(name)} is of --engine vllm: pass that, or leave it out" for name, given in own.items() if given)
            return
        if self.server:
            what = "is for engines that are started here, and those of --server run: leave it out"
            yield from (f"{title(name)} {what}" for name, given in own.items() if given and name != "server")
        if known := adapters & (LORA | VIRTUAL):
            cure = "pass --adapter full or patterns of parameter names"
            yield f"--adapter {min(known)} with --engine vllm: its weights are in no checkpoint that engines load: {cure}"
        if str(self.model).endswith(".gguf"):
            cure = f"call zokern.finetune.convert({self.model!r}, FOLDER) once, and pass that folder"
            yield f"--model {self.model!r} with --engine vllm, which reads GGUF as quantised weights: {cure}"
        if self.device != "cpu":
            yield f"--device {self.device} with --engine vllm: the engines compute, and the model here stays on the CPU: leave it out"
        if self.cache != "dynamic":
            yield f"--cache {self.cache} is of --engine local: leave it out"
        if (kind := self.optimizer_settings.get("perturbation", "copied")) not in ("copied", "copied-own"):
            yield f"--perturbation {kind} with --engine vllm, whose engines keep theta beside their weights: pass copied or copied-own"
        for given in self.engine_option:
            name, equals, value = given.partition("=")
            if not (name.isidentifier() and equals and value):
                yield f"--engine-option {given!r}: write NAME=VALUE, such as max_num_seqs=64"
            if name in TAKEN:
                yield f"--engine-option {name}: the run decides that{TAKEN[name]}: leave it out"
