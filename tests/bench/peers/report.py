"""From rounds to medians, ratios and bars, and to Markdown."""

import statistics

BEGIN, END = "<!-- bench-peers: begin, written by tests/bench/peers -->", "<!-- bench-peers: end -->"
ORDER = ("weft", "haproxy", "haproxy-h1", "nginx", "envoy", "direct")
TITLES = {
    "hop": "One plaintext HTTP/1.1 hop", "pair": "A pair with mutual TLS, HTTP/1.1 clients", "http2": "The pair, HTTP/2 clients",
    "grpc": "The pair, gRPC", "opaque": "The pair, opaque TCP", "connect": "A new connection for each request, one plaintext hop",
    "connect-mtls": "A new connection for each request, the pair", "latency": "Latency at fixed rates, one plaintext hop",
    "latency-mtls": "Latency at fixed rates, the pair", "sizes": "Memory and start",
    "churn": "Endpoints that come and go, one plaintext hop",
}


class Results:
    """The rows by workload, case and system."""

    def __init__(self, rows):
        self.rows = rows
        self.found = {(row["workload"], row["case"], row["system"]): row for row in rows}

    def values(self, workload, case, system, key):
        row = self.found.get((workload, case, system))
        values = [figures.get(key) for figures in row["rounds"]] if row else []
        return values if values and None not in values else []

    def median(self, *key):
        values = self.values(*key)
        return statistics.median(values) if values else None

    def ratio(self, workload, case, system, other, key):
        """The median of the ratios within one round, so that what else the machine does hits both."""
        pairs = zip(self.values(workload, case, system, key), self.values(workload, case, other, key))
        ratios = [own / peer for own, peer in pairs if peer]
        return statistics.median(ratios) if ratios else None

    def cases(self):
        """Workload to its cases, both in the order in which they were measured."""
        order = {}
        for row in self.rows:
            cases = order.setdefault(row["workload"], [])
            if row["case"] not in cases:
                cases.append(row["case"])
        return order

    def systems(self, workload, case):
        return [name for name in ORDER if (workload, case, name) in self.found]


def number(value, digits=3):
    """Three significant digits, without an exponent; nothing where there is nothing."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - whole)}f}"


def spread(values):
    if not values:
        return ""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} to {number(max(values))})"


# DESIGN section 12: name, bar, key of the figure, what it is compared with (None: an absolute bar), cases.
BARS = [
    ("one plaintext HTTP/1.1 hop: CPU against HAProxy", 1.15, "cpu", "haproxy", [("hop", "32 connections, 50 B")]),
    ("one plaintext HTTP/1.1 hop: CPU against Envoy", 0.45, "cpu", "envoy", [("hop", "32 connections, 50 B")]),
    ("pair, HTTP/1.1: CPU against an Envoy pair", 0.40, "cpu", "envoy", [("pair", "32 connections, 50 B")]),
    ("pair, HTTP/2: CPU against an Envoy pair", 0.40, "cpu", "envoy", [("http2", "GET, 8 connections x 16 streams, 50 B")]),
    ("pair, gRPC (the worse of unary and streams): CPU against an Envoy pair", 0.40, "cpu", "envoy",
     [("grpc", "unary, 8 connections x 16 streams, 50 B"), ("grpc", "8 streams, messages of 50 B both ways")]),
    ("pair, one connection: p50 against an Envoy pair", 0.5, "p50_us", "envoy", [("pair", "1 connection, 50 B")]),
    ("pair, half load: p99 against an Envoy pair", 0.5, "p99_us", "envoy", [("latency-mtls", "open loop, half load")]),
    ("opaque, a new connection: CPU against an Envoy pair", 0.25, "cpu", "envoy", [("opaque", "a new connection")]),
    ("opaque, bulk (the worse direction): CPU against an Envoy pair", 1.0, "cpu", "envoy",
     [("opaque", "1 MiB up"), ("opaque", "1 MiB down")]),
    ("resident at rest, MiB", 16, "value", None, [("sizes", "resident at rest, larger of the pair")]),
    ("resident with 1,000 services subscribed, MiB", 28, "value", None,
     [("sizes", "resident with 1000 services and 10000 endpoints")]),
    ("an idle mutual TLS connection, KiB", 16, "value", None, [("sizes", "an idle connection, mutual TLS of a peer")]),
    ("start to the first answer, ms", 100, "value", None, [("sizes", "start to the first answer")]),
]


def bars(results):
    """Each bar with its figure: name, figure, bar, met; the figure is None where it was not measured."""
    judged = []
    for name, bar, key, other, cases in BARS:
        figures = [
            results.ratio(*case, "weft", other, key) if other else results.median(*case, "weft", key) for case in cases
        ]
        # What was not measured is not judged by its other half.
        figure = None if None in figures else max(figures)
        judged.append({"name": name, "figure": figure, "bar": bar, "met": None if figure is None else figure <= bar})
    return judged


def bar_table(judged):
    lines = ["| bar | Weft | at most | |", "|---|---|---|---|"]
    words = {True: "met", False: "**not met**", None: "not measured"}
    for bar in judged:
        lines.append(f"| {bar['name']} | {number(bar['figure'], 4)} | {bar['bar']} | {words[bar['met']]} |")
    return lines


def load_table(results, workload, cases):
    lines = ["| case | | CPU, median (spread) | Weft's CPU against it | per second | p50 us | p99 us | p99.9 us | resident MiB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for case in cases:
        for system in results.systems(workload, case):
            unit = results.found[workload, case, system]["unit"]
            cpu = spread(results.values(workload, case, system, "cpu"))
            ratio = None if system == "weft" else results.ratio(workload, case, "weft", system, "cpu")
            others = [number(results.median(workload, case, system, key), 4) for key in ("rate", "p50_us", "p99_us", "p999_us", "rss_mib")]
            cells = [case, system, f"{cpu} {unit}" if cpu else "", number(ratio), *others]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def size_table(results, cases):
    lines = ["| | | median (spread) |", "|---|---|---|"]
    for case in cases:
        for system in results.systems("sizes", case):
            unit = results.found["sizes", case, system]["unit"]
            lines.append(f"| {case} | {system} | {spread(results.values('sizes', case, system, 'value'))} {unit} |")
    return lines


def words(document):
    """One sentence about the run, for the head of a table."""
    machine, versions = document["machine"], document["versions"]
    named = ", ".join(f"{name} {short(versions[name])}" for name in ("haproxy", "nginx", "envoy") if name in versions)
    busy = "" if machine["load_before"] < 0.5 else f" The machine had other work (load {machine['load_before']}): read ratios only."
    quick = " (`--quick`)" if document["options"]["quick"] else ""
    return (f"{document['started'][:10]}{quick}, {machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}; {named}; "
            f"one worker each.{busy}")


def short(version):
    """The number in what a program says about its version."""
    for word in version.replace("/", " ").split():
        if word[0].isdigit():
            parts = word.split("-")[0].split("+")[0]
            if "." in parts:
                return parts
    return version.split("/")[1] if version.count("/") > 1 else version


def markdown(document):
    results = Results(document["rows"])
    lines = ["# Weft beside its peers", "", words(document), "", "## Bars of the design", "", *bar_table(bars(results)), ""]
    for workload, cases in results.cases().items():
        lines += [f"## {TITLES[workload]}", ""]
        lines += size_table(results, cases) if workload == "sizes" else load_table(results, workload, cases)
        lines.append("")
    if document["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in document["notes"]), ""]
    lines += ["Versions: " + "; ".join(f"{name}: {said}" for name, said in document["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


# What the README shows: words, workload, case, key, unit.
SUMMARY = [
    ("one plaintext HTTP/1.1 hop, 32 connections", "hop", "32 connections, 50 B", "cpu", "us/request"),
    ("pair with mutual TLS, HTTP/1.1, 32 connections", "pair", "32 connections, 50 B", "cpu", "us/request"),
    ("the pair, HTTP/2, 8 connections x 16 streams", "http2", "GET, 8 connections x 16 streams, 50 B", "cpu", "us/request"),
    ("the pair, gRPC unary, 8 connections x 16 streams", "grpc", "unary, 8 connections x 16 streams, 50 B", "cpu", "us/request"),
    ("the pair, gRPC streams of 50 B messages", "grpc", "8 streams, messages of 50 B both ways", "cpu", "us/message"),
    ("the pair, a new connection for each request", "connect-mtls", "16 connections, 50 B", "cpu", "us/request"),
    ("the pair, 1 MiB bodies", "pair", "8 connections, 1 MiB", "cpu", "ms/GiB"),
    ("the pair, a new opaque connection", "opaque", "a new connection", "cpu", "us"),
    ("the pair, opaque bulk down", "opaque", "1 MiB down", "cpu", "ms/GiB"),
    ("the pair, 1 connection: p50", "pair", "1 connection, 50 B", "p50_us", "us"),
    ("the pair at half load: p99", "latency-mtls", "open loop, half load", "p99_us", "us"),
    ("resident at rest", "sizes", "resident at rest, larger of the pair", "value", "MiB"),
    ("resident, 1,000 services with 10,000 endpoints", "sizes", "resident with 1000 services and 10000 endpoints", "value", "MiB"),
    ("start to the first answer", "sizes", "start to the first answer", "value", "ms"),
]


def summary(document):
    """The lines between the markers of the README."""
    results = Results(document["rows"])
    shown = [name for name in ORDER if name != "haproxy-h1"]
    lines = [BEGIN, words(document), "", "| CPU of all proxies, unless said | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for text, workload, case, key, unit in SUMMARY:
        figures = {name: results.median(workload, case, name, key) for name in shown}
        if any(figure is not None for figure in figures.values()):
            lines.append(f"| {text}, {unit} | " + " | ".join(number(figures[name]) for name in shown) + " |")
    judged = [bar for bar in bars(results) if bar["met"] is not None]
    lines += ["", f"Of {len(judged)} bars {sum(bar['met'] for bar in judged)} are met.", "", *bar_table(judged), END]
    return "\n".join(lines)


def put_between(text, lines):
    """`text` with `lines` in place of what is between the markers."""
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"the markers {BEGIN} and {END} are not there")
    return head + lines + tail
