"""The doctor's look at ports: who holds each, and the fix."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping

from gleaner.doctor.finding import Finding
from gleaner.doctor.owners import is_of, pid_of, settings_of
from gleaner.errors import CannotListen, PortTaken, environment_name
from gleaner.machine.ports import check_port
from gleaner.running.run_file import RunFile
from gleaner.running.stack import SYSTEMD
from gleaner.settings.sections import Settings
from gleaner.settings.services import LOOPBACK, service_of

# macOS listens on these itself, for AirPlay.
_AIRPLAY_PORTS = (5000, 7000)
_AIRPLAY = re.compile(r"ControlCe(nter)?\b|AirPlay")
_SWITCH_AIRPLAY_OFF = "switch off macOS's AirPlay Receiver: System Settings, General, AirDrop & Handoff"
_CONTAINER = re.compile(r"docker-proxy|com\.docker|conmon|rootlessport")
_PACKAGED = re.compile(r"\((/usr/s?bin/|/usr/share/grafana/bin/)?(prometheus|grafana)")


def _is_airplay(port: int, holder: str) -> bool:
    return bool(_AIRPLAY.search(holder)) or (sys.platform == "darwin" and port in _AIRPLAY_PORTS)


# (unit, port, holder) -> whether the fix beside it helps; the first that helps counts.
# A service of a package runs as another user, so it may be hidden from this one.
_FIXES: tuple[tuple[Callable[[str, int, str], object], str], ...] = (
    (lambda _, port, holder: _is_airplay(port, holder), f"{_SWITCH_AIRPLAY_OFF}; or {{move}}"),
    (
        lambda _unit, _port, holder: _CONTAINER.search(holder),
        "see whose container it is with `docker ps`; `docker-compose down` stops Gleaner's own; or {move}",
    ),
    (
        lambda unit, _, holder: unit and SYSTEMD.is_dir() and (_PACKAGED.search(holder) or not pid_of(holder)),
        "systemctl disable --now {unit}, if it is that package's service; else stop {holder}, or {move}",
    ),
    (lambda *_: True, "stop {holder}, or {move}"),
)


def examine_port(settings: Settings, name: str, run: RunFile | None, moved: Mapping[str, int]) -> Finding:
    """Return the finding on one port.

    name: its key in `[ports]`.
    run: the stack of this folder.
    moved: the ports that the stack has, by setting.
    """
    port, setting = getattr(settings.ports, name), f"ports.{name}"
    what, named = f"port {port}", f"{setting} ({environment_name(setting)})"
    move = f"set {named} to a free port"
    first = next(other for other in type(settings.ports).model_fields if getattr(settings.ports, other) == port)
    if port and name != first:
        return Finding("FAIL", what, f"{setting}: ports.{first} is {port}, too", move)
    try:
        check_port(service_of(name).host(settings, name), port, setting)
    except CannotListen as e:
        return Finding("FAIL", what, f"{setting}: cannot listen on {e.at}: {e.reason}", e.fix)
    except PortTaken as e:
        holder, theirs = e.holder, settings_of(pid_of(e.holder))
    else:
        return Finding("OK", what, f"{setting}: free")
    if is_of(run, holder) or (theirs and theirs.resolve() == settings.file.resolve()):
        return Finding("OK", what, f"{setting}: held by Gleaner, {holder}")
    if moved.get(setting, port) != port:
        detail = f"{setting}: taken by {holder}; the running stack has {moved[setting]} instead"
        return Finding("WARN", what, detail, f"set {named} to {moved[setting]}")
    if theirs:
        fix = f"gleaner down in {theirs.parent}, or Ctrl-C in the terminal that it was started in; or {move}"
        return Finding("FAIL", what, f"{setting}: taken by the Gleaner of {theirs.parent}, {holder}", fix)
    unit = next(iter(service_of(name).binaries), "")
    fix = next(fix for helps, fix in _FIXES if helps(unit, port, holder))
    return Finding("FAIL", what, f"{setting}: taken by {holder}", fix.format(holder=holder, move=move, unit=unit))


def examine_compose_port(port: int = 5000) -> Iterator[Finding]:
    """Report macOS on the port where compose publishes the API.

    Any other holder may be that API itself.
    """
    try:
        check_port(LOOPBACK, port, "")
    except PortTaken as e:
        if _is_airplay(port, e.holder):
            fix = f"{_SWITCH_AIRPLAY_OFF}; or, for compose, set ML_APP_PORT in .env"
            yield Finding("WARN", f"port {port}", f"compose publishes the API there: taken by {e.holder}", fix)
