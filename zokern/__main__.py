"""python -m zokern, and the command zokern."""

import sys


def main():
    try:
        from .cli import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "click"):
            raise
        print(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="zokern")


if __name__ == "__main__":
    main()
