#!/usr/bin/env python3
"""CPU per request of one plaintext HTTP/1.1 hop: Weft's sidecar, HAProxy and nginx in the same shape on this machine.

Each proxy runs one worker in front of the same nginx backend. The rounds of all of them are interleaved, so that what
else the machine does hits all alike; what is compared are medians of ratios within one round. CPU is the time that the
kernel accounts to the proxy's threads (/proc/PID/task/*/schedstat), so that it does not depend on the load generator.

Usage: tests/bench/hop.py [--weft target/release/weft] [--rounds 5] [--seconds 3] [--connections 32] [--sampling 1] [--json FILE]
Needs: haproxy, nginx, wrk (Debian packages of these names); everything is on loopback.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

BODY = "x" * 50

NGINX_BACKEND = """
worker_processes 1; daemon off; pid {dir}/backend.pid; error_log {dir}/backend.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 60s;
  server {{ listen 127.0.0.1:{port} reuseport; location / {{ default_type text/plain; return 200 "{body}"; }} }} }}
"""

NGINX_PROXY = """
worker_processes 1; daemon off; pid {dir}/proxy.pid; error_log {dir}/proxy.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000;
  upstream app {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering on; }} }} }}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  http-reuse always
  option http-keep-alive
frontend in
  bind 127.0.0.1:{port}
  default_backend app
backend app
  server app 127.0.0.1:{backend} pool-max-conn 256
"""

RESOURCES = """
apiVersion: v1
kind: Service
metadata: {{name: app}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: app-1, labels: {{kubernetes.io/service-name: app}}}}
addressType: IPv4
endpoints: [{{addresses: [127.0.0.1]}}]
ports: [{{name: http, port: {backend}}}]
"""


def free_port(taken=set()):
    """A port below the ephemeral range that nothing listens on."""
    for port in range(23100, 28000):
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    sys.exit("no free port between 23100 and 28000")


MESH = """apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {{name: default}}
spec: {{tracing: {{samplingPercent: {sampling}, endpoint: "http://127.0.0.1:{otlp}"}}}}
"""


class Processes:
    """What was started; `stop` ends just that."""

    def __init__(self):
        self.all = []

    def start(self, *command):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.all.append(process)
        return process

    def stop(self):
        for process in reversed(self.all):
            process.send_signal(signal.SIGTERM)
        for process in self.all:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def family(pid):
    """The process and its children: nginx serves in a child."""
    pids = [pid]
    for other in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{other}/stat") as stat:
                if int(stat.read().rsplit(")", 1)[1].split()[1]) == pid:
                    pids.append(int(other))
        except OSError:
            pass
    return pids


def cpu_seconds(pid):
    total = 0
    for member in family(pid):
        for task in os.listdir(f"/proc/{member}/task"):
            with open(f"/proc/{member}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[0])
    return total / 1e9


def resident_mib(pid):
    total = 0
    for member in family(pid):
        with open(f"/proc/{member}/status") as status:
            total += int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))
    return total / 1024


def wait_for(url, seconds=20):
    last = None
    for _ in range(seconds * 20):
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.HTTPError) as error:
            last = error
        time.sleep(0.05)
    sys.exit(f"{url} did not answer within {seconds} s: {last}")


def wrk(url, connections, seconds):
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url], capture_output=True, text=True, check=True
    ).stdout
    if "Socket errors" in out or "Non-2xx" in out:
        sys.exit(f"errors under load of {url}:\n{out}")
    requests = int(re.search(r"(\d+) requests in", out).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    latency = re.search(r"50%\s+([\d.]+)(us|ms|s)", out)
    scale = {"us": 1, "ms": 1e3, "s": 1e6}[latency.group(2)]
    return requests, rate, float(latency.group(1)) * scale


def start_all(processes, directory, weft, sampling):
    """Name to (URL, process or None)."""
    def write(name, text):
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    backend, nginx, haproxy, local = (free_port() for _ in range(4))
    xds, api, admin, outbound, mesh, otlp = (free_port() for _ in range(6))
    config = write("backend.conf", NGINX_BACKEND.format(dir=directory, port=backend, body=BODY))
    processes.start("nginx", "-p", directory, "-c", config)
    config = write("proxy.conf", NGINX_PROXY.format(dir=directory, port=nginx, backend=backend))
    nginx_process = processes.start("nginx", "-p", directory, "-c", config)
    config = write("haproxy.cfg", HAPROXY.format(port=haproxy, backend=backend))
    haproxy_process = processes.start("haproxy", "-f", config)
    os.mkdir(os.path.join(directory, "resources"))
    write("resources/app.yaml", RESOURCES.format(backend=backend))
    # What --dev would make of it is every trace, which is not what a mesh runs with.
    write("resources/mesh.yaml", MESH.format(sampling=sampling, otlp=otlp))
    processes.start(
        weft, "control-plane", "--dev", "--otlp-listen", f"127.0.0.1:{otlp}", "--xds-listen", f"127.0.0.1:{xds}", "--api-listen", f"127.0.0.1:{api}",
        "--data-dir", os.path.join(directory, "data"), "--resources", os.path.join(directory, "resources"),
    )
    wait_for(f"http://127.0.0.1:{api}/healthz")
    sidecar = processes.start(
        weft, "sidecar", "--name", "client", "--workers", "1", "--xds", f"127.0.0.1:{xds}",
        "--admin-listen", f"127.0.0.1:{admin}", "--outbound-listen", f"127.0.0.1:{outbound}",
        "--mesh-listen", f"127.0.0.1:{mesh}", "--upstream", f"app={local}",
    )
    systems = {
        "direct": (backend, None), "weft": (local, sidecar),
        "haproxy": (haproxy, haproxy_process), "nginx": (nginx, nginx_process),
    }
    systems = {name: (f"http://127.0.0.1:{port}/", process) for name, (port, process) in systems.items()}
    for url, _ in systems.values():
        wait_for(url)
    return systems


def measure(systems, arguments):
    rows = {name: [] for name in systems}
    for round_number in range(-1, arguments.rounds):
        for name, (url, process) in systems.items():
            before = cpu_seconds(process.pid) if process else 0
            seconds = 1 if round_number < 0 else arguments.seconds
            requests, rate, p50 = wrk(url, arguments.connections, seconds)
            used = cpu_seconds(process.pid) - before if process else 0
            # The first round warms up.
            if round_number >= 0:
                memory = resident_mib(process.pid) if process else 0
                rows[name].append({"cpu_us": used / requests * 1e6, "rate": rate, "p50_us": p50, "rss_mib": memory})
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
    for program in ("haproxy", "nginx", "wrk", arguments.weft):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not there; Debian's packages haproxy, nginx and wrk, and cargo build --release")
    processes, directory = Processes(), tempfile.mkdtemp(prefix="weft-hop-")
    try:
        rows = measure(start_all(processes, directory, os.path.abspath(arguments.weft), arguments.sampling), arguments)
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"one plaintext HTTP/1.1 hop, {arguments.connections} connections, {len(BODY)} B, medians of {arguments.rounds}")
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
