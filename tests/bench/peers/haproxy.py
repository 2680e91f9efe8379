"""HAProxy's configurations: one thread, keep-alive and reuse to the full, no log, connections never thrown away early."""

from common import at, write

GLOBAL = """global
  nbthread 1
  maxconn 8000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
  http-reuse always
  option http-keep-alive
"""


def section(kind, name, *lines):
    return f"{kind} {name}\n" + "".join(f"  {line}\n" for line in lines)


def command(program, directory, name, *sections):
    return [program, "-f", write(directory, f"{name}.cfg", GLOBAL + "".join(sections))]


def hop(program, directory, port, backend):
    return command(
        program, directory, "haproxy-hop",
        section("frontend", "in", f"bind {at(port)}", "default_backend app"),
        section("backend", "app", f"server app {at(backend)} pool-max-conn 256"),
    )


def churning(program, directory, port, backend, addresses, control):
    """One hop whose servers can be taken out and put back at the socket `control`."""
    servers = [f"server s{number} {host}:{backend} pool-max-conn 256" for number, host in enumerate(addresses)]
    path = write(
        directory, "haproxy-churn.cfg",
        GLOBAL.replace("global\n", f"global\n  stats socket {control} mode 600 level admin\n")
        + section("frontend", "in", f"bind {at(port)}", "default_backend app")
        + section("backend", "app", "balance leastconn", *servers),
    )
    return [program, "-f", path]


def many(program, directory, port, services):
    """Routes by Host to every one of `services`: name to (addresses, port)."""
    backends = [
        section("backend", name, "balance leastconn", *(f"server s{n} {host}:{to}" for n, host in enumerate(hosts)))
        for name, (hosts, to) in services.items()
    ]
    chosen = section("frontend", "in", f"bind {at(port)}", "use_backend %[req.hdr(host),lower]")
    return command(program, directory, "haproxy-many", chosen, *backends)


def pair(program, directory, own, mesh, backends, client, server, roots, between):
    """Commands of the outbound and the inbound HAProxy; `between` is the ALPN of HTTP/1.1 clients' requests on the way."""
    alpn = {"http": between, "http2": "h2", "grpc": "h2", "tcp": None}
    mine, theirs = [], []
    for kind, protocol in alpn.items():
        mode = "mode tcp" if kind == "tcp" else "mode http"
        offered = f" alpn {protocol}" if protocol else ""
        tls = f"ssl crt {client[1][2]} ca-file {roots} verify required sni str(app.default){offered}"
        to = " proto h2" if kind in ("http2", "grpc") else ""
        listen = f"ssl crt {server[1][2]} ca-file {roots} verify required{offered}"
        mine += [
            section("frontend", f"{kind}-in", mode, f"bind {at(own[kind])}", f"default_backend {kind}"),
            section("backend", kind, mode, f"server mesh {at(mesh[kind])} pool-max-conn 256 {tls}"),
        ]
        theirs += [
            section("frontend", f"{kind}-in", mode, f"bind {at(mesh[kind])} {listen}", f"default_backend {kind}"),
            section("backend", kind, mode, f"server app {at(backends[kind])} pool-max-conn 256{to}"),
        ]
    name = f"haproxy-{between.replace('/', '-')}"
    return [command(program, directory, f"{name}-client", *mine), command(program, directory, f"{name}-server", *theirs)]
