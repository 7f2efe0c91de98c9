"""The entry of `gleaner` and of `python -m gleaner`."""

import sys


def main() -> None:
    """Run a command; Ctrl-C during the import exits with 130."""
    try:
        from gleaner.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
