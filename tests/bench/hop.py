#!/usr/bin/env python3
"""CPU per request of one plaintext HTTP/1.1 hop: Weft's sidecar, HAProxy and nginx in the same shape on this machine.

Each proxy runs one worker in front of the same nginx backend. The rounds of all of them are interleaved, so that what
else the machine does hits all alike; what is compared are medians of ratios within one round. CPU is the time that the
kernel accounts to the proxy's threads (/proc/PID/task/*/schedstat), so that it does not depend on the load generator.

Usage: tests/bench/hop.py [--weft target/release/weft] [--rounds 5] [--seconds 3] [--connections 32] [--sampling 1] [--json FILE]
Needs: haproxy, nginx, redis-server, wrk (Debian packages of these names); everything is on loopback.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))

import common
import loads
import systems
import weft as mesh


def start_all(bench, sampling):
    """Name to (URL, process or None)."""
    port = common.free_port()
    resources = {"app": mesh.outside("app", ["127.0.0.1"], bench.backends["http"])}
    plane = mesh.Plane(bench.processes, bench.programs["weft"], os.path.join(bench.directory, "weft"), resources, sampling)
    found = {"direct": (bench.backends["http"], None), "weft": (port, plane.sidecar("client", *mesh.hop_arguments(port)))}
    for name, (command, port) in bench.hop_commands().items():
        found[name] = (port, bench.processes.start(*command))
    found = {name: (f"http://{common.at(port)}/50", process) for name, (port, process) in found.items()}
    for url, _ in found.values():
        common.wait_for(url)
    return found


def measure(found, arguments):
    rows = {name: [] for name in found}
    for round_number in range(-1, arguments.rounds):
        for name, (url, process) in found.items():
            before = common.cpu_seconds(process.pid) if process else 0
            seconds = 1 if round_number < 0 else arguments.seconds
            load = loads.wrk(url, arguments.connections, seconds)
            used = common.cpu_seconds(process.pid) - before if process else 0
            # The first round warms up.
            if round_number >= 0:
                memory = common.resident_mib(process.pid) if process else 0
                rows[name].append({"cpu_us": used / load["requests"] * 1e6, "rate": load["rate"], "p50_us": load["p50_us"], "rss_mib": memory})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--sampling", default="1", help="percent of the traces that are recorded")
    parser.add_argument("--json", help="also write every figure to this file")
    arguments = parser.parse_args()
    for program in ("haproxy", "nginx", "redis-server", "wrk", arguments.weft):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not there; Debian's packages haproxy, nginx, redis-server and wrk, and cargo build --release")
    programs = {"weft": os.path.abspath(arguments.weft), "haproxy": "haproxy"}
    bench = systems.Bench(programs, ("haproxy", "nginx"), tempfile.mkdtemp(prefix="weft-hop-"))
    try:
        rows = measure(start_all(bench, arguments.sampling), arguments)
    finally:
        bench.stop()
        bench.remove()
    print(f"one plaintext HTTP/1.1 hop, {arguments.connections} connections, {len(common.BODY)} B, medians of {arguments.rounds}")
    print("| | CPU us/request | against HAProxy | against nginx | requests/s | p50 us | resident MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, figures in rows.items():
        median = {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}
        ratios = []
        for other in ("haproxy", "nginx"):
            pairs = zip(figures, rows[other])
            ratio = statistics.median(own["cpu_us"] / peer["cpu_us"] for own, peer in pairs)
            ratios.append("" if name == "direct" else f"{ratio:.2f}")
        cpu = "" if name == "direct" else f"{median['cpu_us']:.1f}"
        memory = "" if name == "direct" else f"{median['rss_mib']:.1f}"
        print(f"| {name} | {cpu} | {ratios[0]} | {ratios[1]} | {median['rate']:.0f} | {median['p50_us']:.0f} | {memory} |")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
