"""All endpoints in one Flask app.

Their errors propagate to the callable in front.
"""

from __future__ import annotations

from flask import Flask, request
from werkzeug.exceptions import NotFound
from werkzeug.routing import Rule

from gleaner.serving.endpoints.contract import add_contract
from gleaner.serving.endpoints.health import add_health
from gleaner.serving.endpoints.mlflow import add_mlflow
from gleaner.serving.endpoints.open_inference import add_open_inference
from gleaner.serving.endpoints.predict import add_predict
from gleaner.serving.endpoints.responses import tally
from gleaner.serving.service import Service


def route_of(rule: Rule) -> str:
    """Return a rule as documents and metrics show it: `/v2/models/{name}`."""
    return str(rule).replace("<path:", "{").replace("<", "{").replace(">", "}")


def make_flask(service: Service) -> Flask:
    """Return a Flask app with every endpoint."""
    flask = Flask("gleaner", static_folder=None)
    flask.config.update(PROPAGATE_EXCEPTIONS=True, TRAP_HTTP_EXCEPTIONS=True)
    flask.url_map.merge_slashes = False

    @flask.before_request
    def note_route() -> None:
        # werkzeug skips leading slashes; the callable in front, which limits and counts by the path, does not.
        if request.environ["PATH_INFO"].startswith("//"):
            raise NotFound
        if request.url_rule is not None:
            tally().route = route_of(request.url_rule)

    for add in (add_health, add_predict, add_mlflow, add_open_inference, add_contract):
        add(flask, service)
    return flask
