"""One tabular regression model in production: train, serve, watch."""

__version__ = "0.1.0"
__all__ = ["Client", "GleanerError", "Settings", "Store", "load_settings", "load_version", "read_table", "train"]

_HOMES = {
    "Client": "gleaner.client",
    "GleanerError": "gleaner.errors",
    "Settings": "gleaner.settings.sections",
    "Store": "gleaner.model.store",
    "load_settings": "gleaner.settings.load",
    "load_version": "gleaner.model.loading",
    "read_table": "gleaner.table.csv",
    "train": "gleaner.training.train",
}

# What type checkers and editors read; to them the name is True. `typing` would cost the guard memory.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from gleaner.client import Client
    from gleaner.errors import GleanerError
    from gleaner.model.loading import load_version
    from gleaner.model.store import Store
    from gleaner.settings.load import load_settings
    from gleaner.settings.sections import Settings
    from gleaner.table.csv import read_table
    from gleaner.training.train import train


def __getattr__(name: str) -> object:
    """Import a public name on its first use; `import gleaner` loads nothing."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'gleaner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
