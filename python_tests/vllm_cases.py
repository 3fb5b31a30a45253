"""Tiny models of several architectures, and vLLM of them on a CPU."""

import os
import signal
import socket
import subprocess
import sys
import time

import torch

OPTIONS = dict(enforce_eager=True, max_model_len=96, max_num_seqs=16)
SHAPES = {
    "Llama": dict(intermediate_size=192, num_key_value_heads=2, head_dim=32),
    "Qwen2": dict(intermediate_size=192, num_key_value_heads=2, tie_word_embeddings=True),
    "OPT": dict(ffn_dim=192, word_embed_proj_dim=128),
    "Gemma": dict(intermediate_size=192, num_key_value_heads=1, head_dim=32),
    "GPT2": dict(bos_token_id=1, eos_token_id=2),
}
VOCABULARY = 330  # that engines pad


def settle(threads="nobind"):
    """The environment of engines on a CPU, before vLLM is imported."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", VLLM_ALLOW_INSECURE_SERIALIZATION="1"
    )
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the core in this process: half a minute less for each engine
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=threads, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")


def save(folder, tokenizer, kind, dtype=torch.float32):
    """A random model that writes much different text, with large weights, and its tokenizer."""
    import transformers

    torch.manual_seed(0)
    common = dict(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)
    names = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    large = dict(init_std=0.2) if kind == "OPT" else dict(initializer_range=0.2)
    config = getattr(transformers, f"{kind}Config")(**common | names | large | SHAPES[kind])
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(folder, dtype=torch.float32):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()


def padding(worker):
    """In a worker: the largest element of the rows that a vocabulary is padded with; 0 where it has none."""
    embedding = next(m for m in worker.get_model().modules() if type(m).__name__ == "VocabParallelEmbedding")
    rows = embedding.shard_indices.num_org_elements
    left = embedding.weight[rows:].abs()
    return len(left), float(left.max()) if left.numel() else 0.0


class Server:
    """``vllm serve`` of a folder, as its module, because vllm-cpu's command looks for a package of another name."""

    def __init__(self, folder, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"]
        self.command += ["--port", str(self.port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "96", *more]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        env = os.environ | {"VLLM_SERVER_DEV_MODE": "1"}
        self.process = subprocess.Popen(self.command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def wait(self, seconds=180):
        import urllib.request

        for _ in range(seconds * 2):
            assert self.process.poll() is None, "the server ended"
            try:
                return urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the server does not answer")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
