"""vLLM as an engine: its LLM, its AsyncLLM, or a running server."""

from .asynchronous import AsyncVLLM
from .engine import EXTENSION, VLLM
from .server import VLLMServer

__all__ = ["EXTENSION", "VLLM", "AsyncVLLM", "VLLMServer"]
