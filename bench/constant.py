"""The server alone: what `gleaner serve` listens with, in front of a callable that answers a constant."""

import sys

from gleaner.allocator import limit_arenas
from gleaner.server import serve
from gleaner.settings import Serving

ANSWER = b'{"prediction":[22.068840579710145]}'


def answer(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [ANSWER]


limit_arenas()
serve(answer, Serving(), int(sys.argv[1]), on_listen=lambda port: print(port, flush=True), on_stop=lambda: None)
