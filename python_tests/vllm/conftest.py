"""The real vLLM on a CPU: these tests run where it is installed (make test-vllm), and are skipped elsewhere."""

from importlib.util import find_spec

import pytest
import vllm_cases
from licence_tokenizer import licence_tokenizer

if find_spec("vllm"):
    vllm_cases.settle()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return licence_tokenizer(tmp_path_factory.mktemp("tokenizer"), "<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory, tokenizer):
    """(architecture, dtype) -> the folder of a tiny model, made once."""
    made = {}

    def make(kind, *dtype):
        if (kind, *dtype) not in made:
            made[kind, *dtype] = vllm_cases.save(kind, tmp_path_factory.mktemp("models") / kind, tokenizer, *dtype)
        return made[kind, *dtype]

    return make


@pytest.fixture
def closing():
    """closing(engine) -> the engine, which is closed when the test is over."""
    engines = []
    yield lambda engine: engines.append(engine) or engine
    for engine in engines:
        engine.close()
