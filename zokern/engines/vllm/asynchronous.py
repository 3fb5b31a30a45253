"""vLLM's ``AsyncLLM`` as an engine."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from itertools import count
from typing import Any, TypeVar

from ...errors import first_line, need
from ..engine import EngineDied
from .engine import finished, of_next
from .versions import check_version
from .workers import Workers

T = TypeVar("T")


class AsyncVLLM(Workers):
    """An ``AsyncLLM`` that was started with ``worker_extension_cls=EXTENSION``.

    Args:
        engine: the AsyncLLM. Requests of others see perturbed weights meanwhile.
        tokenizer: of transformers, which makes texts of tokens.
        loop: the event loop that the engine works in, which runs in another thread than this engine is called from. Default None: one of
            its own, in which nobody has used the engine before.

    Raises:
        BadInput: vLLM is not there, or is of another version than is known to work.
    """

    def __init__(self, engine: Any, tokenizer: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        check_version()
        super().__init__(tokenizer)
        self.name, self.engine, self._ids = "an AsyncLLM", engine, count()
        self._own = loop is None
        self.loop = loop or asyncio.new_event_loop()
        if self._own:
            threading.Thread(target=self.loop.run_forever, daemon=True, name="zokern-vllm").start()

    def rpc(self, call: str) -> list[str]:
        return list(self._done(self.engine.collective_rpc("zokern", args=(call,))))

    def reset(self) -> bool:
        return bool(self._done(self.engine.reset_prefix_cache(reset_running_requests=True)))

    def write(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[list[int]]:
        return [list(out.outputs[0].token_ids) for out in self._done(self._all(prompts, params))]

    def follow(self, prefixes: Sequence[tuple[list[int], list[int]]]) -> list[dict[int, float]]:
        made = self._done(self._all([prefix for prefix, _ in prefixes], [of_next(tokens) for _, tokens in prefixes]))
        return [{token: out.outputs[0].logprobs[0][token].logprob for token in tokens} for out, (_, tokens) in zip(made, prefixes)]

    def close(self) -> None:
        self.engine.shutdown()
        if self._own:
            self.loop.call_soon_threadsafe(self.loop.stop)

    async def _all(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[Any]:
        return list(await asyncio.gather(*map(self._one, prompts, params)))

    async def _one(self, prompt: list[int], params: dict[str, Any]) -> Any:
        sampling = need("vllm").SamplingParams(**params, output_kind=need("vllm.sampling_params").RequestOutputKind.FINAL_ONLY)
        made = self.engine.generate({"prompt_token_ids": prompt}, sampling, f"zokern-{next(self._ids)}")
        return finished(self.name, [out async for out in made][-1])

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()
        except Exception as error:
            raise EngineDied(f"{self.name}: {first_line(error)}") from error
