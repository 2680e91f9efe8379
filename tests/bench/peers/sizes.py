"""What is not measured under load: memory at rest, with idle connections and with many services; start to ready."""

import concurrent.futures
import http.client
import os
import socket
import sys
import time

import common
import connections
import envoy
import haproxy
import weft
from common import at, free_port
from systems import CLIENT

ENDPOINTS = 10


def row(case, unit, system, values):
    return {"workload": "sizes", "case": case, "unit": unit, "system": system, "rounds": [{"value": value} for value in values]}


def idle(systems, doors, bench, options):
    """Before any load: resident memory of the pair's proxies, and the growth for each idle connection."""
    rows, count = [], options.idle
    for name, system in systems.items():
        if not system.processes:
            continue
        rows.append(row("resident at rest, larger of the pair", "MiB", name, [max(system.resident())]))
        if name == "haproxy-h1":
            # Nothing that it holds for an idle connection differs from `haproxy`.
            continue
        app = lambda: connections.Plain(("127.0.0.1", system.ports["http"]))
        rows += growth(name, "plaintext of an app", system.processes[0].pid, app, count)
        port, server_name, ca = doors[name]
        certificate, key, _ = common.svid(bench.directory, f"idle-{name}", CLIENT, ca)
        context = connections.context(certificate, key)
        peer = lambda: connections.Mesh(("127.0.0.1", port), context, server_name)
        rows += growth(name, "mutual TLS of a peer", system.processes[-1].pid, peer, count)
    return rows


def growth(name, what, pid, connect, count):
    # What is made once (pools, tables, caches) is not a connection's.
    connections.measure(pid, connect, 20)
    found = connections.measure(pid, connect, count)
    total = (found["base"] + found["used"] * count) / 1024
    return [
        row(f"an idle connection, {what}", "KiB", name, [found["used"]]),
        row(f"resident with {count} idle connections, {what}", "MiB", name, [round(total, 1)]),
    ]


def many_services(bench, options):
    """Resident memory with many services, each with 10 endpoints, all of them in use by the app."""
    names = many(options.services, ENDPOINTS, bench.backends["http"])
    rows, port = [], {name: free_port() for name in ("weft", "haproxy", "envoy")}
    if bench.wants("weft"):
        own = {"services": resources(names)}
        plane = weft.Plane(bench.processes, bench.programs["weft"], os.path.join(bench.directory, "weft-many"), own)
        process = plane.sidecar("client", "--outbound-listen", at(port["weft"]))
        rows += resident("weft", process, port["weft"], names)
    if bench.wants("haproxy"):
        command = haproxy.many(bench.programs["haproxy"], bench.directory, port["haproxy"], names)
        # It waits a second before each try, and has read everything when it listens: some are enough.
        rows += resident("haproxy", bench.processes.start(*command), port["haproxy"], names, asked=4)
    if bench.wants("envoy"):
        command = envoy.many(bench.programs["envoy"], bench.directory, port["envoy"], names)
        rows += resident("envoy", bench.processes.start(*command), port["envoy"], names)
    return rows


def many(services, endpoints, port):
    """Services by name: hosts and port of the endpoints of each. Nobody listens there."""
    host = lambda number, endpoint: f"127.{1 + number // 100}.{number % 100}.{endpoint}"
    hosts = lambda number: [host(number, endpoint) for endpoint in range(1, endpoints + 1)]
    return {f"s{number}": (hosts(number), port) for number in range(services)}


def resources(names):
    return "---\n".join(weft.outside(name, hosts, to) for name, (hosts, to) in names.items())


def resident(system, process, port, names, asked=None):
    until_open(port, process)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda name: status(port, name), list(names)[:asked], timeout=60))
    # Every one of them is known, and none of its endpoints answers.
    if set(statuses) != {503}:
        sys.exit(f"{system}: of {len(names)} services some answered with other than 503: {sorted(set(statuses))}")
    value = round(connections.settled_kib(process.pid, []) / 1024, 1)
    return [row(f"resident with {len(names)} services and {len(names) * ENDPOINTS} endpoints", "MiB", system, [value])]


def status(port, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/50", headers={"Host": host})
        return connection.getresponse().status
    finally:
        connection.close()


def until_open(port, process, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    sys.exit(f"{process.args[0]} does not listen on {port}")


def starts(bench, options):
    """Milliseconds from the start of a proxy's process to the first 200 through it; Weft's control plane is up already."""
    commands = bench.hop_commands()
    plane = bench.hop_plane() if bench.wants("weft") else None
    found = {name: [] for name in (["weft"] if plane else []) + list(commands)}
    for number in range(options.starts):
        for name in found:
            if name == "weft":
                port = free_port()
                command = plane.sidecar_command(f"client-{number}", "--lame-duck", "0", *weft.hop_arguments(port))
            else:
                command, port = commands[name]
            found[name].append(first_answer(bench, command, port))
    return [row("start to the first answer", "ms", name, values) for name, values in found.items()]


def first_answer(bench, command, port):
    mark = len(bench.processes.all)
    began = time.monotonic()
    process = bench.processes.start(*command)
    while not ok(port):
        if process.poll() is not None or time.monotonic() - began > 20:
            sys.exit(f"{command[0]} did not answer on {port} within 20 s")
        time.sleep(0.001)
    took = (time.monotonic() - began) * 1e3
    bench.processes.stop(mark)
    return round(took, 1)


def ok(port):
    try:
        return status(port, "app") == 200
    except (OSError, http.client.HTTPException):
        return False
