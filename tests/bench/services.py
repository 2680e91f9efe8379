#!/usr/bin/env python3
"""Resident memory of a sidecar with nothing to know, and what it grows by for each service that its app uses and for each
endpoint of one.

Three sidecars with one worker each, one after the other: without services, with services of one endpoint, and with the same
services of ten. Each service was asked for and called once; nobody listens at the endpoints, so that what is measured is what
is known of them. Of the resident memory (VmRSS) what is the process's own (RssAnon) is told apart from what is mapped from
files (RssFile), which sidecars on one machine share.

Usage: tests/bench/services.py [--weft target/release/weft] [--sidecar target/release/weft-sidecar] [--services 1000] [--json FILE]
Everything is on loopback.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))

import common
import connections
import sizes
import weft
from common import at


def kib(pid):
    """VmRSS, RssAnon and RssFile."""
    with open(f"/proc/{pid}/status") as status:
        found = dict(re.findall(r"(\w+):\s+(\d+) kB", status.read()))
    return [int(found[name]) for name in ("VmRSS", "RssAnon", "RssFile")]


def measured(program, sidecar, services, endpoints):
    """The memory of a sidecar that knows so much."""
    directory, processes = tempfile.mkdtemp(prefix="weft-services-"), common.Processes()
    try:
        names = sizes.many(services, endpoints, common.free_port())
        resources = {"services": sizes.resources(names)} if names else {}
        plane = weft.Plane(processes, program, os.path.join(directory, "plane"), resources)
        if sidecar:
            command = plane.sidecar_command
            plane.sidecar_command = lambda *arguments: [sidecar, *command(*arguments)[2:]]
        port = common.free_port()
        process = plane.sidecar("client", "--outbound-listen", at(port))
        if names:
            sizes.resident("weft", process, port, names)
        connections.settled_kib(process.pid, [])
        return kib(process.pid)
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--sidecar", help="the program of the sidecar, instead of `weft sidecar`")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.weft)
    sidecar = os.path.abspath(arguments.sidecar) if arguments.sidecar else None
    count, few, many = arguments.services, 1, sizes.ENDPOINTS
    rows = {f"{services} services of {endpoints}": measured(program, sidecar, services, endpoints)
            for services, endpoints in ((0, 0), (count, few), (count, many))}
    none, one, ten = (own for _, own, _ in rows.values())
    endpoint = (ten - one) * 1024 / (count * (many - few))
    result = {"rows": rows, "bytes_per_endpoint": round(endpoint), "bytes_per_service": round((one - none) * 1024 / count - few * endpoint)}
    print(f"{'':24} resident MiB  own  of files")
    for name, figures in rows.items():
        print(f"{name:24} {figures[0] / 1024:12.1f} {figures[1] / 1024:4.1f} {figures[2] / 1024:9.1f}")
    print(f"{result['bytes_per_service']} bytes for a service, {result['bytes_per_endpoint']} for each of its endpoints")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
