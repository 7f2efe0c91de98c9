"""Ask a running server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import httpx

from gleaner.errors import GleanerError, Unreachable

log = logging.getLogger("gleaner.check")


class Rejected(GleanerError):
    """A request that the server answered with a problem. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(
    data: object, *, host: str, port: int, slot: str = "v1", timeout_seconds: float = 10.0
) -> Mapping[str, object]:
    """Send one object, or a list of them, and log the request, the status and the answer; gives the answer.

    Raises Unreachable if nothing answers, Rejected if the answer is a problem.
    """
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/{slot}/predict"
    log.info("Sending request to %s with data: %s", url, data)
    try:
        # Not `json=data`, which raises for NaN: what is wrong with the data is the server's to say.
        headers = {"Content-Type": "application/json"}
        response = httpx.post(url, content=json.dumps(data), headers=headers, timeout=timeout_seconds, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise Unreachable(f"nothing answers at {url}: {e}; is `gleaner serve` running?") from e
    log.info("Status code: %s", response.status_code)
    try:
        answer = response.json()
    except ValueError as e:
        raise Rejected(response.status_code, f"{url} answered something that is not JSON; is it Gleaner's?") from e
    log.info("Response:\n%s", json.dumps(answer, indent=2))
    if response.status_code != 200 or not isinstance(answer, dict):
        raise Rejected(response.status_code, _reason(answer))
    return answer


def _reason(answer: object) -> str:
    """A problem document in one line."""
    if not isinstance(answer, dict):
        return "the answer is not an object"
    errors = answer.get("errors")
    faults = errors if isinstance(errors, Sequence) and not isinstance(errors, str) else []
    named = "; ".join(f"{fault.get('pointer')}: {fault.get('detail')}" for fault in faults if isinstance(fault, dict))
    return named or str(answer.get("detail") or answer.get("title") or "refused")
