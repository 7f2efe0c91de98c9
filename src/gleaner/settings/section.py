"""The base of each section, and texts that can hold secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer

from gleaner.redaction import hide_login, hide_name, hide_path
from gleaner.settings.addresses import check_link, check_secret_path, check_server, check_webhook

# Texts that can hold a secret. What their serializers return is all that is ever shown of them; no error has the input.
Server = Annotated[str, AfterValidator(check_server), PlainSerializer(hide_login)]
Webhook = Annotated[str, AfterValidator(check_webhook), PlainSerializer(hide_path)]
SecretPath = Annotated[str, AfterValidator(check_secret_path), PlainSerializer(hide_name)]
Link = Annotated[str, AfterValidator(check_link), PlainSerializer(str)]


class Section(BaseModel):
    """A section of the settings: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.model_dump().items()
