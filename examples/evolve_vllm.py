"""Fine-tuning by rewards on vLLM, in a loop of one's own: a model that names either of two numbers learns to name the smaller one."""

import argparse
import random
import re
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zokern
from zokern.engines import Pool, Sampling
from zokern.engines.ray import RayEngine
from zokern.engines.vllm import VLLM, VLLMServer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub id of a causal language model")
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
parser.add_argument("--engines", type=int, help="as many actors of Ray; one engine without Ray, without it")
parser.add_argument("--server", action="append", default=[], help="URL of a running vLLM, once or several times, in place of engines")
parser.add_argument("--tensor-parallel", type=int, default=1)
parser.add_argument("--population", type=int, default=30)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--rows", type=int, default=64, help="prompts an iteration")
parser.add_argument("--out", default="evolved", help="folder for the model and the log of its run")

PROMPT = "Which is smaller, {} or {}? Answer with the number alone. Answer:"


class Reward:
    """Goes to each engine once; a member is a call of it. It returns the mean reward, which is all that comes back."""

    def __init__(self, tokenizer, sampling):
        self.tokenizer, self.sampling = tokenizer, sampling

    def __call__(self, engine, pairs, number):
        written = engine.generate([self.tokenizer(PROMPT.format(a, b))["input_ids"] for a, b in pairs], self.sampling)
        found = [re.search(r"\d+", text) for text in written.texts]
        return sum(match is not None and int(match[0]) == min(pair) for match, pair in zip(found, pairs)) / len(pairs)


def main():
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=False)
    # The copy here names the parameters, and stays as it is until the end.
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype), trust_remote_code=False)
    eager = not torch.cuda.is_available()  # to compile takes longer than it saves on a CPU
    make = partial(VLLM, given.model, tokenizer, given.tensor_parallel, dtype=given.dtype, max_model_len=64, enforce_eager=eager)
    if given.server:
        engines = [VLLMServer(url, tokenizer) for url in given.server]
    elif given.engines:
        gpus = given.tensor_parallel if torch.cuda.is_available() else 0
        engines = [RayEngine(make, given.tensor_parallel, gpus, f"engine {i}") for i in range(given.engines)]
    else:
        engines = [make()]
    pool = Pool(engines)
    optimizer = zokern.EvolutionStrategies(
        model.named_parameters(), lr=2e-3, sigma=1e-3, population=given.population, maximize=True, perturbation=pool
    )
    pairs = [(a, b) for a in range(100) for b in range(100) if a != b]
    reward, draw = Reward(tokenizer, Sampling(4, ends=(tokenizer.eos_token_id,))), random.Random(0)
    Path(given.out).mkdir(exist_ok=True)
    with zokern.record(optimizer, Path(given.out) / "trajectory.jsonl", model=model):
        for step in range(1, given.steps + 1):
            driver = pool.driver(reward, draw.sample(pairs, given.rows))
            optimizer.step(driver)  # each engine that is free takes the next member; then one pass moves the weights of all
            mean, best = sum(driver.results) / len(driver.results), max(driver.results)
            print(f"iteration {step}: reward {mean:.3f}, best member {best:.3f}", flush=True)
    pool.pull(optimizer)  # the weights of the engines; Trajectory.replay makes the same bits of the checkpoint and the log
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    pool.close()


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
