"""The settings that name files with secrets or keys."""

from __future__ import annotations

from pathlib import Path

from gleaner.settings.sections import Settings

# A setting that names a key, a token or a password file stands here, so that a backup has that file.
SECRET_FILES = (
    "alerts.webhook_token_file",
    "serving.keys_file",
    "serving.public_key",
    "serving.tls_certificate",
    "serving.tls_key",
    "training.signing_key",
)


def secret_files(settings: Settings) -> dict[str, Path]:
    """Return the file of each such setting that is set.

    A relative path starts at the folder of the settings file.
    """
    found = {}
    for setting in SECRET_FILES:
        section, _, name = setting.partition(".")
        value = getattr(getattr(settings, section), name)
        if value:
            found[setting] = settings.file.parent / value
    return found
