"""Write docs/cli.md: the help of every command. `make docs` runs it, and a test holds the page to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from gleaner.cli.main import gleaner

HEAD = """# Commands

`make docs` writes this page from the commands' own `--help`; a test fails if the page is stale.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | an error that you can fix; one line says how |
| 2 | wrong usage |
| 3 | done in part |
| 130 | interrupted by Ctrl-C |

## Shell completion

The shell completes commands and options after one of these. Each needs `gleaner` on the `PATH`, as after
`source .venv/bin/activate`.

| shell | do this once |
| --- | --- |
| bash 4.4 or newer | add `eval "$(_GLEANER_COMPLETE=bash_source gleaner)"` to `~/.bashrc` |
| zsh | add `eval "$(_GLEANER_COMPLETE=zsh_source gleaner)"` to `~/.zshrc` |
| fish | add `_GLEANER_COMPLETE=fish_source gleaner \\| source` to `~/.config/fish/config.fish` |

Open a new terminal. After `gleaner` and `mo`, the Tab key then completes `models`.
"""


def commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Yield a context for every command of a group, nested ones included."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        inner = type(context)(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands(command, inner)
        else:
            yield inner


def block(context: click.Context) -> str:
    """Return a command's help as a code block."""
    return f"```text\n{context.get_help()}\n```\n"


def page() -> str:
    """Return docs/cli.md."""
    settings = {**gleaner.context_settings, "terminal_width": 100}
    root = click.Context(gleaner, info_name="gleaner", **settings)
    parts = [HEAD, f"## `gleaner`\n\n{block(root)}"]
    parts += [f"## `{context.command_path}`\n\n{block(context)}" for context in commands(gleaner, root)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
