#!/usr/bin/env python3
"""CPU of opaque connections through a pair of sidecars with mutual TLS: new connections, small operations, bulk.

redis-benchmark calls redis-server through two sidecars with one worker each; the figures are the CPU time that the
kernel accounts to both (schedstat), medians over the rounds.

Usage: tests/bench/opaque.py [--weft target/release/weft] [--rounds 3]
Needs: redis-server (Debian package); everything is on loopback.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))

import common

MIB = 1024 * 1024


def start_all(processes, directory, weft):
    """The two sidecars and the local port that leads to Redis."""
    redis, local, xds, api, server_admin, client_admin = (common.free_port() for _ in range(6))
    at = "127.0.0.1:{}".format
    processes.start("redis-server", "--port", str(redis), "--save", "", "--dir", directory)
    processes.start(
        weft, "control-plane", "--dev", "--xds-listen", at(xds), "--api-listen", at(api),
        "--data-dir", os.path.join(directory, "data"),
    )
    common.wait_for(f"http://{at(api)}/healthz")
    shared = ("--workers", "1", "--xds", at(xds), "--admin-listen")
    server = processes.start(
        weft, "sidecar", "--name", "redis-1", "--label", "app=redis", *shared, at(server_admin), "--port", f"tcp:{redis}/tcp"
    )
    client = processes.start(
        weft, "sidecar", "--name", "client", *shared, at(client_admin), "--upstream", f"redis={local}"
    )
    for admin in (server_admin, client_admin):
        common.wait_for(f"http://{at(admin)}/ready")
    return server, client, local


def benchmark(port, count, *arguments):
    command = ["redis-benchmark", "-p", str(port), "-n", str(count), "-q", "--csv", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode == 0 and '"' in result.stdout, result.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    processes, directory = common.Processes(), tempfile.mkdtemp(prefix="weft-opaque-")
    # Name, operations, unit, what one operation is in that unit, arguments.
    loads = [
        ("new connection", 10_000, "us", 1e6 / 10_000, ("-c", "16", "-t", "ping_mbulk", "-k", "0")),
        ("small operation", 50_000, "us", 1e6 / 50_000, ("-c", "32", "-t", "ping_mbulk")),
        ("1 MiB up", 1024, "ms/GiB", 1e3, ("-c", "4", "-t", "set", "-d", str(MIB))),
        ("1 MiB down", 1024, "ms/GiB", 1e3, ("-c", "4", "-t", "get", "-d", str(MIB))),
    ]
    figures = {name: [] for name, *_ in loads}
    try:
        server, client, local = start_all(processes, directory, os.path.abspath(arguments.weft))
        # Until discovery has the endpoint.
        ready = any(benchmark(local, 1, "-c", "1", "-t", "ping_mbulk")[0] for _ in range(200))
        if not ready:
            sys.exit("no answer through the mesh")
        for _ in range(arguments.rounds):
            for name, count, _, scale, load in loads:
                before = common.cpu_seconds(server.pid) + common.cpu_seconds(client.pid)
                worked, error = benchmark(local, count, *load)
                if not worked:
                    sys.exit(f"{name}: {error}")
                used = common.cpu_seconds(server.pid) + common.cpu_seconds(client.pid) - before
                figures[name].append(used * scale)
        memory = common.resident_mib(server.pid), common.resident_mib(client.pid)
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"opaque connections through a pair of sidecars, CPU of both, medians of {arguments.rounds}")
    print("| | CPU |")
    print("|---|---|")
    for name, _, unit, *_ in loads:
        print(f"| {name} | {statistics.median(figures[name]):.0f} {unit} |")
    print(f"resident afterwards: {memory[0]:.1f} and {memory[1]:.1f} MiB")


if __name__ == "__main__":
    main()
