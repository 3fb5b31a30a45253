"""Where this zokern was imported from: what pip has installed, or its source, beside which an editable installation builds the kernels."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = (ROOT / "setup.py").is_file()
INSTALL = f"pip install -e {ROOT}" if CHECKOUT else "pip install --force-reinstall --no-deps zokern"


def not_built(why: str, needs: str) -> str:
    """The status of a backend whose module is not here."""
    where = f": this is the source, {ROOT}: run what is installed from another folder, or" if CHECKOUT else ":"
    return f"not built ({why}){where} {needs}, then {INSTALL}"
