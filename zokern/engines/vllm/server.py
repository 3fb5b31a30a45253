"""A running ``vllm serve`` as an engine, over HTTP."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import Any

from ...errors import BadInput, first_line, need
from ..engine import EngineDied
from .versions import check_known
from .workers import Workers

AT_ONCE = 64  # requests
# What a server would take from the model's own generation config where a request does not say otherwise.
NEUTRAL = dict(top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls zokern.engines.vllm.worker.Worker"


class VLLMServer(Workers):
    """A running server of vLLM, on this machine or another. vLLM need not be installed here.

    It was started as

        VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls zokern.engines.vllm.worker.Worker

    Calls of its workers are for trusted networks alone, as vLLM says of that mode. Requests of others see perturbed weights meanwhile.

    Args:
        url: such as "http://localhost:8000".
        tokenizer: of transformers, which makes texts of tokens. Default None: that of the model's name at the server, loaded here.
        wait: seconds in which a server that died is waited for to be started again, by whoever started it. Default 600.
        timeout: seconds until a request that is not answered counts as a death. Default 3600.

    Raises:
        BadInput: nothing answers there, or a server of another version, without the mode, or without the extension.
    """

    def __init__(self, url: str, tokenizer: Any = None, wait: float = 600.0, timeout: float = 3600.0) -> None:
        self.url, self.name, self.wait, self.timeout = url.rstrip("/"), f"vLLM at {url}", wait, timeout
        try:
            self._look()
        except EngineDied as error:
            raise BadInput(f"{error}: start it with {START}, or check the address") from None
        super().__init__(tokenizer or need("transformers").AutoTokenizer.from_pretrained(self.model, trust_remote_code=False))

    def _look(self) -> None:
        """Is it there, and what we need?"""
        check_known(str(self._ask("/version").get("version")), self.name)
        self.model = str(self._ask("/v1/models")["data"][0]["id"])
        try:
            answers = self.rpc(json.dumps(["applied"]))
        except EngineDied as error:
            raise BadInput(f"{self.name}: its workers have no zokern ({error}): start it with {START}") from None
        if any("error" in json.loads(answer) for answer in answers):
            raise BadInput(f"{self.name}: {answers[0]}")

    def rpc(self, call: str) -> list[str]:
        return [str(answer) for answer in self._ask("/collective_rpc", {"method": "zokern", "args": [call]})["results"]]

    def reset(self) -> bool:
        return bool(self._ask("/reset_prefix_cache?reset_running_requests=true", {})["success"])

    def write(self, prompts: Sequence[list[int]], params: Sequence[dict[str, Any]]) -> list[list[int]]:
        alike = [list(of_them) for _, of_them in groupby(zip(params, prompts), key=lambda pair: pair[0])]
        each = self._at_once([([prompt for _, prompt in of_them], of_them[0][0]) for of_them in alike])
        return [list(choice["token_ids"]) for choices in each for choice in choices]

    def follow(self, prefixes: Sequence[tuple[list[int], list[int]]]) -> list[dict[int, float]]:
        found: list[dict[int, float]] = [{} for _ in prefixes]
        wanted = sorted({token for _, tokens in prefixes for token in tokens})
        having = [[i for i, (_, tokens) in enumerate(prefixes) if token in tokens] for token in wanted]
        forced = dict(temperature=0.0, max_tokens=1, logprobs=0, ignore_eos=True)  # a token, and its probability before it was
        each = self._at_once([([prefixes[i][0] for i in of], forced | {"allowed_token_ids": [t]}) for t, of in zip(wanted, having)])
        for token, of_it, choices in zip(wanted, having, each):
            for i, choice in zip(of_it, choices, strict=True):
                found[i][token] = float(choice["logprobs"]["token_logprobs"][0])
        return found

    def restart(self) -> None:
        """Wait until it has been started again."""
        until = time.monotonic() + self.wait
        while True:
            try:
                return self._look()
            except EngineDied:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)

    def close(self) -> None:
        """The server goes on, with theta."""
        if self.plan:
            with suppress(EngineDied, BadInput):
                self.call("go", [self.applied, []], [])
                self.reset()

    def _at_once(self, requests: list[tuple[list[list[int]], dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """The completions of each request, which the server batches as it likes."""
        with ThreadPoolExecutor(min(max(len(requests), 1), AT_ONCE)) as threads:
            return list(threads.map(lambda request: self._completions(*request), requests))

    def _completions(self, prompts: list[list[int]], params: dict[str, Any]) -> list[dict[str, Any]]:
        given = {name: value for name, value in params.items() if name != "detokenize"}
        answer = self._ask("/v1/completions", {"model": self.model, "prompt": prompts, "return_token_ids": True, **NEUTRAL, **given})
        for choice in answer["choices"]:
            if choice["finish_reason"] not in ("stop", "length"):
                raise EngineDied(f"{self.name} ended a request before it was done ({choice['finish_reason']})")
        return sorted(answer["choices"], key=lambda choice: int(choice["index"]))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip()[:200]
            if error.code == 404 and path != "/version":
                raise BadInput(f"{self.name} has no {path}: start it with {START}") from None
            if error.code < 500:
                raise BadInput(f"{self.name} refused {path} ({error.code}: {said})") from None
            raise EngineDied(f"{self.name}: {path} failed ({error.code}: {said})") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineDied(f"{self.name} does not answer ({first_line(error)})") from None
