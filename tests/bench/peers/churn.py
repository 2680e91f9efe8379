"""Endpoints that come and go a thousand times a second while the hop serves: each system is told in its own way.

Weft by its operator API (each change durable, then pushed), Envoy by an endpoint file that is renamed into place, HAProxy by
its runtime socket. The endpoint is there and answers all the time, so nobody has a reason for an error.
"""

import http.client
import json
import os
import socket
import statistics
import threading
import time

import cases
import envoy
import haproxy
import loads
import weft
from common import free_port, wait_for, write
from systems import System

RATE = 1000
STAYS, COMES = "127.0.0.1", "127.0.0.2"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


class Changing:
    """Calls `change` with what should be so from now on, RATE times a second or as often as it can."""

    def __init__(self, change):
        self.change, self.count, self.error, self.over = change, 0, None, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(15)
        self.seconds = time.monotonic() - self.began

    def run(self):
        try:
            while not self.over.wait(max(0, self.began + self.count / RATE - time.monotonic())):
                self.change(self.count % 2 == 0)
                self.count += 1
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            self.error = error


def rows(bench, options):
    systems, made = {}, {}
    for name, start in (("weft", weft_hop), ("haproxy", haproxy_hop), ("envoy", envoy_hop)):
        if bench.wants(name):
            systems[name], made[name] = start(bench)
            wait_for(systems[name].url())
    done = {name: [] for name in systems}

    def run(system, options):
        with Changing(made[system.name]) as changing:
            figures = loads.wrk(system.url(), 32, options.seconds)
        if changing.error:
            raise loads.LoadError(f"a change failed: {changing.error}")
        done[system.name].append(changing.count / changing.seconds)
        return figures

    still = cases.Case("churn", "32 connections, 50 B, no changes", cases.wrk(32, "/50"), share=0.6)
    case = cases.Case("churn", "32 connections, 50 B, an endpoint comes and goes", run, share=0.6, may_fail=True)
    found = cases.measure(systems, [still, case], options)
    rates = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in done.items() if values)
    options.notes.append(f"churn: changes per second that were taken: {rates}")
    return found


def weft_hop(bench):
    resources = {"app": weft.outside("app", [STAYS], bench.backends["http"]).split("---\n")[0]}
    plane = weft.Plane(bench.processes, bench.programs["weft"], os.path.join(bench.directory, "weft-churn"), resources)
    api = http.client.HTTPConnection("127.0.0.1", plane.api, timeout=10)

    def send(method, path, addresses):
        slice_ = {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "app-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "app"}},
            "endpoints": [{"addresses": [address]} for address in addresses],
            "ports": [{"name": "http", "port": bench.backends["http"]}],
        }
        api.request(method, path, json.dumps(slice_), {"Content-Type": "application/json"})
        answer = api.getresponse()
        text = answer.read()
        if answer.status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")

    send("POST", SLICES, [STAYS])
    port = free_port()
    system = System("weft", {"http": port}, [plane.sidecar("client", *weft.hop_arguments(port))])
    return system, lambda both: send("PUT", f"{SLICES}/app-1", [STAYS, COMES] if both else [STAYS])


def haproxy_hop(bench):
    port, control = free_port(), os.path.join(bench.directory, "haproxy.sock")
    command = haproxy.churning(bench.programs["haproxy"], bench.directory, port, bench.backends["http"], (STAYS, COMES), control)

    def change(both):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5)
            stream.connect(control)
            stream.sendall(f"set server app/s1 state {'ready' if both else 'maint'}\n".encode())
            while stream.recv(4096):
                pass

    return System("haproxy", {"http": port}, [bench.processes.start(*command)]), change


def envoy_hop(bench):
    port = free_port()
    path = os.path.join(bench.directory, "endpoints", "app.json")

    def change(both):
        addresses = [STAYS, COMES] if both else [STAYS]
        write(bench.directory, "endpoints/next", json.dumps(envoy.endpoints("app", addresses, bench.backends["http"])))
        os.rename(os.path.join(bench.directory, "endpoints", "next"), path)

    change(False)
    command = envoy.churning(bench.programs["envoy"], bench.directory, port, path)
    return System("envoy", {"http": port}, [bench.processes.start(*command)]), change
