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

    def make(*what):
        if what not in made:
            made[what] = vllm_cases.save(tmp_path_factory.mktemp("models") / what[0], tokenizer, *what)
        return made[what]

    return make


@pytest.fixture
def closing():
    """closing(engine) -> the engine, which is closed when the test is over."""
    engines = []
    yield lambda engine: engines.append(engine) or engine
    for engine in engines:
        engine.close()
