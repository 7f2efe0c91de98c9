"""A stand-in for Grafana: health, and mounted files for the password."""

import base64
import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PASSWORD = os.environ["GF_SECURITY_ADMIN_PASSWORD"] or "admin"  # Grafana does the same with an empty one
TOKEN = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
DATA = Path("/var/lib/grafana/first-start")


class Handler(BaseHTTPRequestHandler):
    """Two pages: /api/health for everybody, / for the administrator."""

    def do_GET(self) -> None:
        """Respond to a GET."""
        if self.path == "/api/health":
            self.respond(200, {"database": "ok"})
        elif self.headers["Authorization"] != TOKEN:
            self.respond(401, {"message": "Unauthorized"})
        else:
            folders = ("/etc/grafana/provisioning", "/etc/grafana/dashboards")
            found = {str(path): path.read_text() for folder in folders for path in Path(folder).rglob("*.*")}
            self.respond(200, {"files": found, "first_start": DATA.read_text()})

    def respond(self, status: int, body: object) -> None:
        """Send a body as JSON."""
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


if not DATA.exists():
    DATA.write_text(os.urandom(8).hex())
HTTPServer(("", 3000), Handler).serve_forever()
