"""vLLM's ``LLM`` as an engine."""

import gc
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from ...errors import BadInput, first_line, need
from ..engine import EngineDied
from .versions import check_version
from .workers import Workers

EXTENSION = "zokern.engines.vllm.worker.Worker"
"""The ``worker_extension_cls`` with which vLLM is to be started."""
T = TypeVar("T")


def of_next(tokens: Sequence[int]) -> dict[str, Any]:
    """Arguments of SamplingParams that ask for the log-probabilities of tokens that may come next."""
    return dict(temperature=0.0, max_tokens=1, logprob_token_ids=list(tokens), detokenize=False)


def finished(name: str, out: Any) -> Any:
    """What vLLM made of a request.

    Raises:
        EngineDied: the request was ended before it was done, as those are that run when an engine shuts down.
    """
    if out.outputs[0].finish_reason not in ("stop", "length"):
        raise EngineDied(f"{name} ended a request before it was done ({out.outputs[0].finish_reason})")
    return out


def _deaf() -> None:
    """Processes that this thread starts are not ended by Ctrl-C, which a terminal sends to all of them: who asks them hears it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


class VLLM(Workers):
    """vLLM's ``LLM``, with workers that know zokern.

    Args:
        model: folder or hub id of a causal language model.
        tokenizer: of transformers. Default None: the model's.
        tensor_parallel: workers. Default 1.
        **options: arguments of ``vllm.LLM``, such as dtype, max_model_len, gpu_memory_utilization.

    Raises:
        BadInput: vLLM is not there, is of another version than is known to work, or cannot start.
    """

    def __init__(self, model: str, tokenizer: Any = None, tensor_parallel: int = 1, **options: Any) -> None:
        check_version()
        self.name = f"vLLM of {model!r}"
        given = dict(model=model, tensor_parallel_size=tensor_parallel, worker_extension_cls=EXTENSION, enable_prefix_caching=False)
        several = dict(distributed_executor_backend="mp") if tensor_parallel > 1 else {}  # not Ray, in an actor of which this may be
        self.options = given | several | options
        # One thread for all calls: how many others a CPU computes with is a setting of the thread that asks, and the engine checks that.
        resource_tracker.ensure_running()  # which would let signals through again in the thread that starts it
        self._thread = ThreadPoolExecutor(1, "zokern-vllm", _deaf)
        self.llm: Any = None
        self._start()
        llm: Any = self.llm
        super().__init__(tokenizer or llm.get_tokenizer())

    def _start(self) -> None:
        vllm = need("vllm")
        try:
            self.llm = self._thread.submit(vllm.LLM, **self.options).result()
        except Exception as error:
            raise BadInput(f"{self.name} cannot start ({first_line(error)}): see what it printed") from error

    def rpc(self, call: str) -> list[str]:
        return list(self._alive(lambda: self.llm.collective_rpc("zokern", args=(call,))))

    def reset(self) -> bool:
        return bool(self._alive(lambda: self.llm.reset_prefix_cache(reset_running_requests=True)))

    def write(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[list[int]]:
        return [list(out.outputs[0].token_ids) for out in self._generated(prompts, params)]

    def follow(self, prefixes: Sequence[tuple[list[int], list[int]]]) -> list[dict[int, float]]:
        params = [of_next(tokens) for _, tokens in prefixes]
        made = self._generated([prefix for prefix, _ in prefixes], params)
        return [{token: out.outputs[0].logprobs[0][token].logprob for token in tokens} for out, (_, tokens) in zip(made, prefixes)]

    def _generated(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[Any]:
        sampling = [need("vllm").SamplingParams(**own) for own in params]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [finished(self.name, out) for out in self._alive(lambda: self.llm.generate(given, sampling, use_tqdm=False))]

    def restart(self) -> None:
        self.close()
        try:
            self._start()
        except BadInput as error:
            raise EngineDied(str(error)) from error

    def close(self) -> None:
        if self.llm is not None:
            core: Any = getattr(self.llm.llm_engine, "engine_core", None)
            if hasattr(core, "shutdown"):
                core.shutdown()
            self.llm = None
            gc.collect()

    def _alive(self, act: Callable[[], T]) -> T:
        try:
            return self._thread.submit(act).result()
        except Exception as error:
            raise EngineDied(f"{self.name}: {first_line(error)}") from error
