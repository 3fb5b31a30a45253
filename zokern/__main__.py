"""python -m zokern, and the command zokern."""

import sys


def main():
    try:
        from .cli import app, lasting

        lasting(lambda: app(prog_name="zokern"))
    except KeyboardInterrupt:  # before the command had begun, which sees to the others
        sys.exit(130)
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "click"):
            raise
        print(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
