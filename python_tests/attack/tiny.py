"""A model of a few thousand weights with a tokenizer of a few words, data for it, and runs of a second."""

import json
from pathlib import Path

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the film is a story of people and time bad good".split(), *map(str, range(80))]
LAST = 25
LOGGED = ("loss", "eval_loss", "reward", "eval_reward")
# Two batches a step, of 64 rows: no whole number of epochs; the last checkpoint is that of the last step.
PLAIN = ["--batch-size", "4", "--accumulate", "2", "--steps", LAST, "--save-every", "5", "--eval-every", "10", "--max-length", "16"]
PLAIN += ["--lr", "1e-2", "--device", "cpu", "--no-check"]
RUNS = {
    "mezo": [],
    "zo-adam, adapters, best": ["--optimizer", "zo-adam", "--adapter", "lora", "--keep", "best"],
    "mezo-svrg, copy": ["--optimizer", "mezo-svrg", "--anchor", "copy", "--lr-full", "1e-2", "--q", "4"],
    "bfloat16, defer": ["--dtype", "bfloat16", "--defer"],
    "hybrid": ["--optimizer", "hybrid", "--fo-lr", "1e-3"],
}


def make(folder: Path) -> list:
    """Model and data in a folder. -> the options of ``zokern finetune`` that name them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 2), ("[SEP]", 3)])
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), WORDS))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    torch.manual_seed(0)
    small = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
    BertModel(BertConfig(vocab_size=len(WORDS), **small)).save_pretrained(folder / "model")
    rows = [f"the {word} film is a story of people {i},{word}" for i in range(40) for word in ("bad", "good")]
    (folder / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return ["--model", folder / "model", "--data", folder / "data.csv", *PLAIN]


def make_writer(folder: Path) -> list:
    """A causal model, prompts and a reward, in a folder that ``make`` has filled. -> the options of a run of ``zokern evolve``."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    model, prompts, judge = folder / "writer", folder / "prompts.csv", folder / "judge.py"
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(model)
    torch.manual_seed(0)
    small = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), initializer_range=0.6, **small)).save_pretrained(model)
    prompts.write_text("\n".join(["prompt", *(f"a film {i}" for i in range(20))]) + "\n")
    judge.write_text("def judge(completions):\n    return [len(text) for text in completions]\n")
    few = "--rows 4 --max-new-tokens 2 --steps 9 --eval-every 3 --population 3 --sigma 0.1 --device cpu".split()
    return ["--model", model, "--data", prompts, "--reward", f"{judge}:judge", *few]


def weights(run: Path) -> dict:
    """All that is saved of a model, as bytes."""
    files = [path.relative_to(run) for path in run.glob("**/*model.safetensors")]
    return {file: (run / file).read_bytes() for file in files if file.parts[0] != "checkpoints" and not file.parts[0].startswith(".")}


def steps(run: Path) -> bytes | list | None:
    """The trajectory. Where an anchor is copied without the marks of its flushes, which a run that goes on makes at other places."""
    path = run / "trajectory.jsonl"
    data = path.read_bytes() if path.exists() else None
    if data is None or b'"anchor":"copy"' not in data:
        return data
    return [{name: value for name, value in json.loads(line).items() if name not in ("flushed", "crc")} for line in data.splitlines()]


def differ(run: Path, whole: Path, losses=True) -> str | None:
    """How a run is another than the one that nothing happened to; None where it is not.

    Args:
        losses: whether the same losses were logged: a run that was interrupted has logged one more where it was.
    """

    def results(run):
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return {
            "weights": weights(run),
            "trajectory": steps(run),
            "metrics": {name: json.loads((run / "metrics.json").read_text())[name] for name in ("before", "after", "best", "steps")},
            "losses": losses and [(e["step"], e[name]) for e in log for name in LOGGED if name in e],
            "files": sorted(path.name for path in run.iterdir()),
        }

    try:
        mine, theirs = results(run), results(whole)
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    wrong = [name for name in mine if mine[name] != theirs[name]]
    more = set(mine["files"]) ^ set(theirs["files"])
    return f"another run by its {', '.join(wrong)}{f' ({sorted(more)})' if more else ''}" if wrong else None
