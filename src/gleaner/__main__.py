"""`gleaner`, and `python -m gleaner`: Ctrl-C while it is being loaded ends it as quietly as at any other moment."""

import sys


def main() -> None:
    """Run a command."""
    try:
        from gleaner.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
