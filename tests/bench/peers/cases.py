"""What is measured under load: the cases of each workload, and rounds in which the systems take turns."""

import sys
import time
from dataclasses import dataclass
from typing import Callable

import loads

GIB = 1 << 30
MIB = 1 << 20


@dataclass
class Case:
    """A load, and by what the CPU time is divided: a request, a connection, or a GiB."""
    workload: str
    name: str
    run: Callable
    unit: str = "us/request"
    # Bytes of one operation where the unit is ms/GiB.
    size: int = 0
    # Systems that cannot take part.
    without: tuple = ()
    # The share of the full number of rounds.
    share: float = 1.0
    # Errors are a result, which is told in the notes; elsewhere they end the run.
    may_fail: bool = False

    def cost(self, cpu_seconds, requests):
        if self.unit == "ms/GiB":
            return cpu_seconds * 1e3 / (requests * self.size / GIB)
        return cpu_seconds * 1e6 / requests


def wrk(connections, path, *headers):
    return lambda system, options: loads.wrk(system.url(path), connections, options.seconds, *headers)


def http1(workload):
    """The same cases for one hop and for a pair."""
    return [
        Case(workload, "1 connection, 50 B", wrk(1, "/50")),
        Case(workload, "32 connections, 50 B", wrk(32, "/50")),
        Case(workload, "128 connections, 50 B", wrk(128, "/50"), share=0.6),
        Case(workload, "32 connections, 10 KiB", wrk(32, "/files/10k"), share=0.6),
        Case(workload, "8 connections, 1 MiB", wrk(8, "/files/1m"), "ms/GiB", MIB, share=0.6),
    ]


def reconnecting(workload):
    return [Case(workload, "16 connections, 50 B", wrk(16, "/50", "Connection: close"))]


def http2(bench):
    def run(path, data, connections, streams):
        return lambda system, options: loads.h2load(system.url(path, "http2"), connections, streams, options.seconds, data)

    # The second variant of HAProxy differs for clients in HTTP/1.1 alone.
    return [
        Case("http2", "GET, 8 connections x 16 streams, 50 B", run("/50", None, 8, 16), without=("haproxy-h1",)),
        Case("http2", "GET, 1 connection x 1 stream, 50 B", run("/50", None, 1, 1), without=("haproxy-h1",)),
        Case("grpc", "unary, 8 connections x 16 streams, 50 B", run("/weft.Bench/Call", bench.call, 8, 16), without=("haproxy-h1",)),
        Case("grpc", "8 streams, messages of 50 B both ways", streams(bench), "us/message", without=("haproxy-h1",)),
    ]


def streams(bench):
    return lambda system, options: loads.stream(bench.programs["stream"], system.ports["grpc"], 8, options.seconds)


def opaque():
    def run(full, quick, *arguments):
        return lambda system, options: loads.redis(system.ports["tcp"], quick if options.quick else full, *arguments)

    big = ("-c", "4", "-d", str(MIB))
    common = {"without": ("haproxy-h1",), "share": 0.6}
    return [
        Case("opaque", "a new connection", run(5000, 2000, "-c", "16", "-t", "ping_mbulk", "-k", "0"), "us/connection", **common),
        Case("opaque", "request and response, 32 connections", run(40000, 15000, "-c", "32", "-t", "ping_mbulk"), **common),
        Case("opaque", "1 MiB up", run(1024, 384, "-t", "set", *big), "ms/GiB", MIB, **common),
        Case("opaque", "1 MiB down", run(1024, 384, "-t", "get", *big), "ms/GiB", MIB, **common),
    ]


def latency(workload, bench, systems, options):
    """Fixed rates that every system holds: a half and a fifth of what the slowest reaches by itself."""
    slowest = min(loads.wrk(system.url(), 32, 1)["rate"] for system in systems.values())
    options.notes.append(f"{workload}: the slowest system reached {slowest:.0f} requests/s before the open loop")

    def case(share, words):
        rate = max(100, round(slowest * share, -2))
        run = lambda system, options: loads.openloop(bench.programs["openloop"], system.url(), 32, rate, options.seconds)
        return Case(workload, f"open loop, {words} load", run, share=0.6)

    return [case(0.5, "half"), case(0.2, "a fifth of the")]


def measure(systems, cases, options):
    """Rows: workload, case, system and the figures of each round. A round is every system once, in turn."""
    rows = []
    for case in cases:
        taking = {name: system for name, system in systems.items() if name not in case.without}
        figures = {name: [] for name in taking}
        rounds = max(1, round(options.rounds * case.share))
        for number in range(rounds):
            # Never a part of a round: ratios are within rounds.
            if number > 0 and time.monotonic() > options.deadline:
                options.notes.append(f"{case.workload}, {case.name}: {number} of {rounds} rounds, the time was over")
                break
            for name, system in taking.items():
                figures[name].append(one(case, system, options))
        rows += [
            {"workload": case.workload, "case": case.name, "unit": case.unit, "system": name, "rounds": found}
            for name, found in figures.items()
        ]
        print(f"  {case.workload}: {case.name}", file=sys.stderr, flush=True)
    return rows


def one(case, system, options):
    before = system.cpu()
    try:
        figures = case.run(system, options)
    except loads.LoadError as error:
        told = f"{case.workload}, {case.name}, {system.name}: {error}"
        if not case.may_fail:
            sys.exit(told)
        options.notes.append(" ".join(told.split()))
        return {}
    if system.processes:
        figures["cpu"] = case.cost(system.cpu() - before, figures["requests"])
        figures["rss_mib"] = max(system.resident())
    return figures
