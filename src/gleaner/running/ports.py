"""The ports of the stack, checked before anything starts."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable

from gleaner.errors import PortTaken, Refused, environment_name
from gleaner.machine.ports import check_port, resolve
from gleaner.settings.sections import Settings
from gleaner.settings.services import LOOPBACK, Service, service_of


def place_ports(settings: Settings, services: Iterable[Service], *, move: bool) -> tuple[Settings, list[str]]:
    """Return settings with free ports, and a line for each moved port.

    A port 0 becomes any free port.

    services: the services that will start.
    move: use the next free port instead of a taken one.
    Raises Refused, with a line for each taken port and each port of two settings, and CannotListen.
    """
    ports: dict[str, int] = settings.ports.model_dump()
    used = [port for service in services for port in service.ports]
    moved, faults = [], []
    for i, name in enumerate(used):
        setting, host, port = f"ports.{name}", service_of(name).host(settings, name), ports[name]
        others = {ports[other] for other in used if other != name}
        twin = next((f"ports.{other}" for other in used[:i] if port and ports[other] == port), None)
        holder = twin
        try:
            check_port(host, port, setting)
        except PortTaken as e:
            holder, fault = twin or e.holder, str(e)
        if twin:
            fix = f"set {setting} in gleaner.toml (or {environment_name(setting)}) to another port"
            fault = f"{twin} and {setting} are both {port}; {fix}"
        if holder:
            faults.append(fault)
        if port == 0 or (holder and move):
            ports[name] = _find_free(host, port, others)
        if holder and move:
            moved.append(f"{setting} is {ports[name]} this time, because {port} is taken by {holder}")
    for name, port in ports.items():
        if port == 0:  # its service does not start; the rendered files need an address for it all the same
            ports[name] = _find_free(LOOPBACK, 0, ports.values())
    if faults and not move:
        raise Refused("\nerror: ".join(faults) + "; or, for this start only, use free ports: gleaner up --auto-ports")
    return settings.model_copy(update={"ports": settings.ports.model_copy(update=ports)}), moved


def _find_free(host: str, after: int, others: Collection[int]) -> int:
    """Return the next free port behind `after`; any if `after` is 0.

    others: ports to leave out.
    """
    for port in range(after + 1, min(after + 1_000, 65_536)) if after else ():
        with contextlib.suppress(PortTaken):
            if port not in others:
                check_port(host, port, "")
                return port
    address = resolve(host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        with socket.create_server((address, 0), family=family) as server:
            free: int = server.getsockname()[1]
        if free not in others:
            return free
