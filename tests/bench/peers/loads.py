"""The load generators: how they are called, and what is read from what they print."""

import json
import re
import subprocess

SCALE = {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}


class LoadError(Exception):
    """A generator saw errors: its figures would not be those of the same work."""


def run(command, seconds):
    result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise LoadError(f"{' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def duration_us(text):
    """wrk's and h2load's `12.3ms` in microseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * SCALE[unit]


def parse_wrk(text):
    if "Socket errors" in text or "Non-2xx" in text:
        raise LoadError(f"errors under load:\n{text}")
    latency = dict(re.findall(r"^\s+(\d+(?:\.\d+)?)%\s+(\S+)$", text, re.MULTILINE))
    return {
        "requests": int(re.search(r"(\d+) requests in", text).group(1)),
        "rate": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
        "p50_us": duration_us(latency["50"]),
        "p99_us": duration_us(latency["99"]),
    }


def wrk(url, connections, seconds, *headers):
    """A closed loop: each connection sends its next request when it has an answer."""
    headers = [part for header in headers for part in ("-H", header)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", *headers, url]
    return parse_wrk(run(command, seconds))


def parse_h2load(text):
    found = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    done, succeeded, *bad = (int(number) for number in found.groups())
    if done == 0 or done != succeeded or any(bad) or re.search(r"status codes: .* [1-9]\d* [345]xx", text):
        raise LoadError(f"errors under load:\n{text}")
    rate = float(re.search(r"finished in \S+, ([\d.]+) req/s", text).group(1))
    mean = re.search(r"time for request:\s+\S+\s+\S+\s+(\S+)", text).group(1)
    return {"requests": done, "rate": rate, "mean_us": duration_us(mean)}


def h2load(url, connections, streams, seconds, data=None):
    """A closed loop over HTTP/2: each stream sends its next request when it has an answer."""
    command = ["h2load", f"-c{connections}", f"-m{streams}", "-D", str(seconds), url]
    if data:
        command[1:1] = ["-d", data, "-H", "content-type: application/grpc", "-H", "te: trailers"]
    return parse_h2load(run(command, seconds))


def parse_redis(text, count):
    rows = [line.split(",") for line in text.splitlines() if line.startswith('"') and "rps" not in line]
    if len(rows) != 1:
        raise LoadError(f"not one line of figures: {text!r}")
    return {"requests": count, "rate": float(rows[0][1].strip('"'))}


def stream(program, port, connections, seconds):
    """Messages of 50 bytes that come back on one gRPC stream of each connection, 32 of them on their way (stream.rs)."""
    result = json.loads(run([program, "call", f"127.0.0.1:{port}", str(connections), str(seconds)], seconds))
    return {**result, "rate": result["requests"] / result["seconds"]}


def redis(port, count, *arguments):
    """redis-benchmark over opaque TCP."""
    return parse_redis(run(["redis-benchmark", "-p", str(port), "-n", str(count), "-q", "--csv", *arguments], 60), count)


def openloop(program, url, connections, rate, seconds):
    """Requests at fixed moments, whether answers come or not (openloop.rs)."""
    host, path = re.fullmatch(r"http://([^/]+)(/.*)", url).groups()
    result = json.loads(run([program, host, path, str(connections), f"{rate:.0f}", str(seconds)], seconds))
    if result["errors"]:
        raise LoadError(f"{result['errors']} errors at {rate:.0f} requests/s of {url}")
    return {**result, "rate": result["requests"] / result["seconds"]}
