"""The server of `gleaner serve` with a constant response."""

import sys

from gleaner.errors import GleanerError
from gleaner.machine.memory import limit_arenas
from gleaner.serving.exchange import Request, Response
from gleaner.serving.server import serve
from gleaner.settings.sections import Serving

RESPONSE = b'{"prediction":[22.068840579710145]}'


class Constant:
    """An application whose every response is the same."""

    def admit(self, request: Request) -> int:
        return 1_000_000

    def hold(self, size: int, more: int) -> None:
        pass

    def release(self, request: Request) -> None:
        pass

    def count(self, request: Request) -> None:
        pass

    def respond_at_once(self, request: Request) -> Response:
        return Response(200, [("Content-Type", "application/json")], RESPONSE)

    def respond(self, request: Request) -> Response:
        return self.respond_at_once(request)

    def refuse(self, request: Request, error: GleanerError) -> Response:
        return Response(400, [], str(error).encode())


limit_arenas()
serve(Constant(), Serving(), int(sys.argv[1]), on_listen=lambda port: print(port, flush=True), on_stop=lambda: None)
