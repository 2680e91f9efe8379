#!/usr/bin/env python3
"""What telemetry costs: CPU per request of sidecars with it and without it, and what a scrape of many series does to p99.

Four meshes take turns within each round, so that what else the machine does hits all alike; compared are medians of
ratios within one round, and beside them the least of all rounds: what else runs adds to a cost, and takes nothing off. CPU is what the kernel accounts to the sidecars (schedstat), their control threads included,
which turn spans into OTLP and send them.

  off    a sidecar with the feature `without-telemetry`: counts nothing, trace contexts pass unread
  on     metrics and propagation, no trace is recorded
  1 %    one of a hundred traces is recorded and exported
  100 %  every trace is

Loads: wrk as fast as it goes, through one sidecar and through a pair with mutual TLS; and through the pair at a fixed
rate at which no span is dropped, since what is dropped costs nothing to export. At the end requests at a fixed rate
through a sidecar with at least 10,000 lines of series, scraped and left alone in turn.

Usage: tests/bench/telemetry.py --off FILE [--on target/release/weft-sidecar] [--weft target/release/weft]
           [--rounds 5] [--seconds 2] [--rate 2000] [--json FILE]
Two builds of weft-sidecar, of which the first has to be kept elsewhere, and weft for the control plane:
  cargo build --release -p weft -p weft-sidecar --bin weft-sidecar --features weft-sidecar/without-telemetry
  cargo build --release -p weft -p weft-sidecar --bin weft-sidecar --bin weft
Needs: nginx, redis-server, wrk (Debian packages of these names), rustc; everything is on loopback.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tests", "bench", "peers"))

import common
import install
import loads
import systems
import weft as mesh

# Name, and what is sampled in percent.
MESHES = {"off": "0", "on": "0", "1 %": "1", "100 %": "100"}
# What is compared with what, and how much more it may cost.
BARS = (("on", "off", 1.05), ("1 %", "on", 1.02), ("100 %", "on", 1.40))
SERIES = 10_000
# More often than anybody scrapes.
SCRAPE_EVERY = 1.0


def start_all(bench, programs):
    """The hop and the pair of each mesh: name to system."""
    hops, pairs = {}, {}
    for name, sampling in MESHES.items():
        sidecar = programs["off" if name == "off" else "on"]
        directory = os.path.join(bench.directory, name.replace(" %", "-percent"))
        own, door, port = {kind: common.free_port() for kind in (*bench.backends, "outbound")}, common.free_port(), common.free_port()
        resources = {"app": mesh.inside(bench.backends), "plain": mesh.outside("plain", ["127.0.0.1"], bench.backends["http"])}
        plane = mesh.Plane(bench.processes, programs["weft"], directory, resources, sampling, [sidecar])
        pairs[name] = systems.System(name, own, list(mesh.pair(plane, own, door, bench.backends)))
        hops[name] = systems.System(name, {"http": port}, [plane.sidecar("hop", "--upstream", f"plain={port}")])
    for system in (*hops.values(), *pairs.values()):
        common.wait_for(system.url())
    return hops, pairs


def value(system, name):
    """The sum of a metric of a system's sidecars."""
    found = 0
    for process in system.processes:
        text = scraped(process.admin).decode()
        found += sum(float(number) for number in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))
    return found


def scraped(admin):
    with urllib.request.urlopen(f"http://{common.at(admin)}/metrics", timeout=10) as answer:
        return answer.read()


def measure(taking, load, arguments):
    """CPU in microseconds per request of each system in each round, and the share of spans that were dropped."""
    rows = {name: [] for name in taking}
    spans = {name: [value(system, f"weft_spans_{what}_total") for what in ("exported", "dropped")] for name, system in taking.items()}
    for round_number in range(-1, arguments.rounds):
        # Who goes first has a cooler machine: each in turn.
        names = list(taking)
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            system = taking[name]
            before = system.cpu()
            requests = load(system, 1 if round_number < 0 else arguments.seconds)["requests"]
            # The first round warms up.
            if round_number >= 0:
                rows[name].append((system.cpu() - before) / requests * 1e6)
    dropped = {}
    for name, system in taking.items():
        exported, lost = (value(system, f"weft_spans_{what}_total") - was for what, was in zip(("exported", "dropped"), spans[name]))
        dropped[name] = lost / (exported + lost) if exported + lost else 0.0
    return {"rows": rows, "dropped": dropped}


def ratio(rows, name, other):
    return statistics.median(own / base for own, base in zip(rows[name], rows[other]))


def least(rows, name, other):
    return min(rows[name]) / min(rows[other])


def many_series(bench, programs):
    """A sidecar that has called so many services that a scrape has SERIES lines: its local port and its process."""
    # Each has some thirty lines: the buckets above all.
    count = SERIES // 25
    port, outbound = common.free_port(), common.free_port()
    names = [f"s{number}" for number in range(count)]
    resources = {name: mesh.outside(name, ["127.0.0.1"], bench.backends["http"]) for name in names}
    plane = mesh.Plane(bench.processes, programs["weft"], os.path.join(bench.directory, "many"), resources, "1", [programs["on"]])
    process = plane.sidecar("client", "--upstream", f"s0={port}", "--outbound-listen", common.at(outbound))
    for name in names:
        for _ in range(100):
            if common.answers(f"http://{common.at(outbound)}/50", f"{name}.default") is None:
                break
        else:
            sys.exit(f"{name} does not answer")
    return systems.System("many", {"http": port}, [process])


class Scraping:
    """Scrapes while it is entered. What comes is thrown away unread: only the sidecar's side is of interest."""

    def __init__(self, admin):
        self.admin, self.over, self.bytes, self.times = admin, threading.Event(), 0, 0

    def scrape(self):
        with socket.create_connection(("127.0.0.1", self.admin), timeout=10) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            buffer = bytearray(1 << 20)
            while (length := connection.recv_into(buffer)) > 0:
                self.bytes += length
        self.times += 1

    def run(self):
        while not self.over.wait(SCRAPE_EVERY):
            self.scrape()

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def scrapes(bench, programs, arguments):
    """p99 in microseconds of each round, scraped and left alone."""
    system = many_series(bench, programs)
    admin = system.processes[0].admin
    lines = sum(1 for line in scraped(admin).splitlines() if not line.startswith(b"#"))
    found, scraping = {"scraped": [], "alone": []}, None
    times = 0
    for round_number in range(arguments.rounds):
        for name in ("alone", "scraped") if round_number % 2 else ("scraped", "alone"):
            load = lambda: loads.openloop(programs["openloop"], system.url(), 32, 2 * arguments.rate, 2 * arguments.seconds)
            if name == "scraped":
                scraping = Scraping(admin)
                with scraping:
                    figures = load()
                times += scraping.times
            else:
                figures = load()
            found[name].append(figures["p99_us"])
    return {"lines": lines, "scrapes": times, "p99_us": found}


def report(results):
    print("| load | off | on | 1 % | 100 % | " + " | ".join(f"{own} / {base} (bar {bar})" for own, base, bar in BARS) + " | spans dropped at 100 % |")
    print("|---" * (6 + len(BARS)) + "|")
    for load, found in results["cpu"].items():
        rows = found["rows"]
        medians = " | ".join(f"{statistics.median(rows[name]):.1f}" for name in MESHES)
        ratios = " | ".join(f"{ratio(rows, own, base):.3f} ({least(rows, own, base):.3f})" for own, base, _ in BARS)
        print(f"| {load}: CPU us/request | {medians} | {ratios} | {found['dropped']['100 %'] * 100:.1f} % |")
    told = results["scrape"]
    own, base = (told["p99_us"][name] for name in ("scraped", "alone"))
    print(f"\np99 with {told['lines']} series, scraped each second ({told['scrapes']} times): {statistics.median(own):.0f} us; "
          f"left alone: {statistics.median(base):.0f} us; rounds {sorted(own)} and {sorted(base)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--on", default="target/release/weft-sidecar")
    parser.add_argument("--off", required=True, help="the sidecar that was built with the feature without-telemetry")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rate", type=int, default=2000, help="requests in a second of the loads at a fixed rate")
    parser.add_argument("--json", help="also write every figure to this file")
    arguments = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for program in ("nginx", "redis-server", "wrk", arguments.weft, arguments.on, arguments.off):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not there; see --help for what is needed")
    programs = {name: os.path.abspath(path) for name, path in (("weft", arguments.weft), ("on", arguments.on), ("off", arguments.off))}
    # The second serves a port of the pair; without it the instance is not healthy.
    for name in ("openloop", "stream"):
        programs[name] = install.generator(ROOT, os.path.join(ROOT, "target", "bench"), name)
    bench = systems.Bench(programs, (), tempfile.mkdtemp(prefix="weft-telemetry-"))
    fastest = lambda system, seconds: loads.wrk(system.url(), 32, seconds)
    fixed = lambda system, seconds: loads.openloop(programs["openloop"], system.url(), 32, arguments.rate, seconds)
    try:
        hops, pairs = start_all(bench, programs)
        cpu = {
            "one sidecar, as fast as it goes": measure(hops, fastest, arguments),
            "pair, as fast as it goes": measure(pairs, fastest, arguments),
            f"pair, {arguments.rate} requests/s": measure(pairs, fixed, arguments),
        }
        results = {"cpu": cpu, "scrape": scrapes(bench, programs, arguments)}
    finally:
        bench.stop()
        bench.remove()
    report(results)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
