"""python -m zokern"""

import sys

try:
    from .cli import app
except ModuleNotFoundError as missing:
    if missing.name not in ("typer", "click"):
        raise
    print(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    app(prog_name="python -m zokern")
