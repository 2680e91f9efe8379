#!/usr/bin/env python3
"""Resident memory of a sidecar for each idle connection: mutual TLS on the mesh port, plaintext on the outbound port.

One sidecar with one worker; the connections are opened one after the other, each in three states that are measured
apart: with nothing asked yet (mesh: TLS, preface and SETTINGS), after one request, and gone again. What is printed is the
growth of VmRSS (/proc/PID/status) of the sidecar, divided by the connections, in KiB, and what stays when all are closed.

Usage: tests/bench/idle.py [--weft target/release/weft] [--connections 1000] [--json FILE]
Needs: openssl (the command), nginx (Debian package); everything is on loopback, two descriptors for each connection.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))

import common
import connections

ID = "spiffe://weft.local/ns/default/sa/idle"


def start_all(processes, directory, weft):
    """The addresses of the mesh port and the outbound port of one sidecar, and its process."""
    backend, xds, api, admin, outbound, port = (common.free_port() for _ in range(6))
    at = "127.0.0.1:{}".format
    with open(os.path.join(directory, "backend.conf"), "w") as file:
        file.write(common.NGINX_BACKEND.format(dir=directory, port=backend, port2=common.free_port(), body=common.BODY))
    processes.start("nginx", "-c", os.path.join(directory, "backend.conf"), "-p", directory)
    processes.start(weft, "control-plane", "--dev", "--xds-listen", at(xds), "--api-listen", at(api),
                    "--data-dir", os.path.join(directory, "data"))
    common.wait_for(f"http://{at(api)}/healthz")
    sidecar = processes.start(
        weft, "sidecar", "--name", "web-1", "--label", "app=web", "--workers", "1", "--xds", at(xds),
        "--admin-listen", at(admin), "--outbound-listen", at(outbound), "--mesh-listen", at(port),
        "--port", f"http:{backend}/http",
    )
    common.wait_for(f"http://{at(admin)}/ready")
    return sidecar, ("127.0.0.1", port), ("127.0.0.1", outbound), f"p{backend}.web.default.weft"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    directory, processes = tempfile.mkdtemp(prefix="weft-idle-"), common.Processes()
    try:
        sidecar, mesh_port, outbound, name = start_all(processes, directory, os.path.abspath(arguments.weft))
        ca = os.path.join(directory, "data/ca.crt"), os.path.join(directory, "data/ca.key")
        context = connections.context(*common.svid(directory, "client", ID, ca)[:2])
        kinds = {"mesh": lambda: connections.Mesh(mesh_port, context, name), "outbound": lambda: connections.Plain(outbound)}
        # What is made once (pools, tables, caches) is not a connection's.
        for connect in kinds.values():
            connections.measure(sidecar.pid, connect, 20)
        count = arguments.connections
        result = {kind: connections.measure(sidecar.pid, connect, count) for kind, connect in kinds.items()}
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{count} connections; KiB for each: with nothing asked, after a request, and left when closed")
    for name, found in result.items():
        print(f"{name:9} {found['fresh']:7} {found['used']:7} {found['stays']:7}   (process before: {found['base']} KiB)")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
