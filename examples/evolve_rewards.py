"""Fine-tuning by rewards, in a loop of one's own: a model that names either of two numbers learns to name the smaller one."""

import argparse
import random
import re

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import zokern
from zokern.evolve import Generator, Members, Rewards, Row
from zokern.evolve.prompts import encode

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", help="folder or hub id of a causal language model; a tiny one, made here, without it")
parser.add_argument("--lr", type=float, help="learning rate; sigma, and of another model than the tiny one half of it, without it")
parser.add_argument("--sigma", type=float, help="perturbation radius; 2e-2 for the tiny model and 1e-3 for another one without it")
parser.add_argument("--population", type=int, default=30)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--rows", type=int, default=64, help="prompts an iteration")
given = parser.parse_args()
sigma = given.sigma or (1e-3 if given.model else 2e-2)  # small models bear more: docs/settings.md
lr = given.lr or (sigma / 2 if given.model else sigma)

pairs = [(a, b) for a in range(16) for b in range(16) if a != b]
random.Random(0).shuffle(pairs)
rows = [Row(f"The smaller of {a} and {b} is", {"answer": min(a, b)}, f"row {i}") for i, (a, b) in enumerate(pairs)]
held_out, train = rows[:48], rows[48:]


def tiny_model():
    """A language model of 12,000 parameters, and what it learned from: sentences of which half are wrong."""
    words = ["<end>", "The", "smaller", "of", "and", "is", *map(str, range(16))]
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="<end>")
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), initializer_range=0.1, **size))
    adam, coin = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random(0)
    for _ in range(400):
        sentences = [f"The smaller of {a} and {b} is {coin.choice((a, b))}" for a, b in coin.sample(pairs, 64)]
        ids = tokenizer(sentences, return_tensors="pt").input_ids
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits[:, -1], ids[:, -1]).backward()
        adam.step()
        adam.zero_grad()
    return model, tokenizer


def is_right(completions, answer):
    """A reward in TRL's signature: a number for each completion, of the columns that it names."""
    found = [re.search(r"\d+", text) for text in completions]
    return [float(number is not None and int(number[0]) == right) for number, right in zip(found, answer)]


if given.model:
    tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32, trust_remote_code=False)
else:
    torch.set_num_threads(1)  # on tensors this small several wait for each other
    model, tokenizer = tiny_model()
generator = Generator(model.eval(), tokenizer, max_new_tokens=3 if given.model else 1)
rewards = Rewards([is_right])


def tokens(rows):
    return encode(rows, tokenizer, generator.max_new_tokens, generator.positions)


def judged():
    """The mean reward on the held-out rows."""
    values = rewards(held_out, generator(tokens(held_out)).texts).values
    return sum(values) / len(values)


before = judged()
print(f"held-out reward {before:.3f}")
optimizer = zokern.EvolutionStrategies(model.named_parameters(), lr=lr, sigma=sigma, population=given.population, maximize=True, seed=0)
draw = random.Random(0)
for step in range(1, given.steps + 1):
    part = draw.sample(train, min(given.rows, len(train)))
    members = Members(generator, rewards, part, tokens(part), seed=(0, step))
    optimizer.step(members)  # each member of the population answers all of these rows; then one pass moves the weights
    if step % 10 == 0 or step == given.steps:
        mean, best = sum(members.means) / len(members.means), max(members.means)
        print(f"iteration {step}: reward {mean:.3f}, best member {best:.3f}; held-out reward {judged():.3f}", flush=True)
print(f"held-out reward {before:.3f} -> {judged():.3f}")
