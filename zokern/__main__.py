"""python -m zokern, and the command zokern."""

import sys

from .version import __version__


def main():
    try:
        from .cli import app, lasting

        lasting(lambda: app(prog_name="zokern"))
    except KeyboardInterrupt:  # before the command had begun, which sees to the others
        sys.exit(130)
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "click", "rich"):
            raise
        if sys.argv[1:] == ["--version"]:
            print(f"zokern {__version__}")
            return
        if sys.argv[1:2] == ["doctor"]:
            from .doctor.__main__ import main as doctor

            sys.exit(doctor(sys.argv[2:]))
        print(f"error: {missing.name} is not installed: pip install 'zokern[demo]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
