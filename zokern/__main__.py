"""python -m zokern, and the command zokern."""

import sys


def main():
    try:
        from .cli import app, lasting
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "click"):
            raise
        print(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", file=sys.stderr)
        sys.exit(2)
    lasting(lambda: app(prog_name="zokern"))


if __name__ == "__main__":
    main()
