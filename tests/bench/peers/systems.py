"""The systems in their two shapes: one hop in plaintext, and a pair with mutual TLS between; all in front of one backend."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

import common
import envoy
import haproxy
import loads
import weft
from common import at, free_port, wait_for, write

CLIENT = "spiffe://weft.local/ns/default/sa/client"
SERVER = "spiffe://weft.local/ns/default/sa/app"
MESSAGE = b"x" * 50
GRPC = b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE

NGINX_PROXY = """
worker_processes 1; daemon off; pid {dir}/proxy.pid; error_log {dir}/proxy.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  proxy_temp_path {dir}/proxy-temp; client_body_temp_path {dir}/proxy-body;
  upstream app {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering on; }} }} }}
"""


@dataclass
class System:
    """One way from client to backend; the processes are those that are charged."""
    name: str
    ports: dict
    processes: list = field(default_factory=list)
    idle_mib: list = field(default_factory=list)

    def url(self, path="/50", kind="http"):
        return f"http://{at(self.ports[kind])}{path}"

    def cpu(self):
        return sum(common.cpu_seconds(process.pid) for process in self.processes)

    def resident(self):
        return [common.resident_mib(process.pid) for process in self.processes]


class Bench:
    """The directory, the programs and the backend that all systems have in common."""

    def __init__(self, programs, wanted, directory):
        self.programs, self.wanted, self.directory = programs, wanted, directory
        self.processes = common.Processes(directory)
        # nginx started as root serves as nobody, who has to get to www.
        os.chmod(directory, 0o711)
        self.backends = {kind: free_port() for kind in ("http", "http2", "grpc", "tcp")}
        for name, content in {"10k": b"x" * 10240, "1m": b"x" * (1 << 20), "grpc": GRPC}.items():
            write(directory, f"www/files/{name}", content)
        self.call = write(directory, "call", GRPC)
        config = common.NGINX_BACKEND.format(
            dir=directory, port=self.backends["http"], port2=self.backends["http2"], body=common.BODY)
        self.processes.start("nginx", "-p", directory, "-c", write(directory, "backend.conf", config))
        self.processes.start("redis-server", "--port", str(self.backends["tcp"]), "--bind", "127.0.0.1", "--save", "", "--dir", directory)
        if "stream" in programs:
            self.processes.start(programs["stream"], "serve", at(self.backends["grpc"]))
        wait_for(f"http://{at(self.backends['http'])}/50")

    def wants(self, name):
        return name in self.wanted

    def direct(self):
        return {"direct": System("direct", dict(self.backends))} if self.wants("direct") else {}

    def hop_commands(self):
        """Name to (command, port) of each proxy of the plaintext hop but Weft, which needs its control plane."""
        ports, directory, backend = {name: free_port() for name in ("haproxy", "nginx", "envoy")}, self.directory, self.backends["http"]
        commands = {}
        if self.wants("haproxy"):
            commands["haproxy"] = haproxy.hop(self.programs["haproxy"], directory, ports["haproxy"], backend)
        if self.wants("nginx"):
            config = write(directory, "proxy.conf", NGINX_PROXY.format(dir=directory, port=ports["nginx"], backend=backend))
            commands["nginx"] = ["nginx", "-p", directory, "-c", config]
        if self.wants("envoy"):
            commands["envoy"] = envoy.hop(self.programs["envoy"], directory, ports["envoy"], backend)
        return {name: (command, ports[name]) for name, command in commands.items()}

    def hop_plane(self):
        resources = {"app": weft.outside("app", ["127.0.0.1"], self.backends["http"])}
        return weft.Plane(self.processes, self.programs["weft"], os.path.join(self.directory, "weft-hop"), resources)

    def hop(self):
        systems = self.direct()
        if self.wants("weft"):
            port = free_port()
            systems["weft"] = System("weft", {"http": port}, [self.hop_plane().sidecar("client", *weft.hop_arguments(port))])
        for name, (command, port) in self.hop_commands().items():
            systems[name] = System(name, {"http": port}, [self.processes.start(*command)])
        for system in systems.values():
            wait_for(system.url())
        return systems

    def pair(self):
        """The systems, and for each what a peer on its mesh port needs: (port, server name, roots and key to sign with)."""
        systems, doors = self.direct(), {}
        if self.wants("weft"):
            self.weft_pair(systems, doors)
        ca = common.authority(self.directory)
        client, server = ((identity, common.svid(self.directory, name, identity, ca, ",DNS:app.default"))
                          for name, identity in (("client", CLIENT), ("server", SERVER)))
        made = {}
        for name in ("haproxy", "haproxy-h1", "envoy"):
            if not self.wants(name):
                continue
            own, mesh = ({kind: free_port() for kind in self.backends} for _ in range(2))
            arguments = (self.directory, own, mesh, self.backends, client, server, ca[0])
            if name == "envoy":
                commands = envoy.pair(self.programs["envoy"], *arguments)
            else:
                commands = haproxy.pair(self.programs["haproxy"], *arguments, "h2" if name == "haproxy" else "http/1.1")
            made[name] = System(name, own, [self.processes.start(*command) for command in commands])
            doors[name] = (mesh["http"], "app.default", ca)
        systems.update(made)
        for system in systems.values():
            wait_for(system.url())
            wait_until(lambda: loads.h2load(system.url(kind="http2"), 1, 1, 1), system.name)
            wait_until(lambda: loads.redis(system.ports["tcp"], 1, "-c", "1", "-t", "ping_mbulk"), system.name)
        return systems, doors

    def weft_pair(self, systems, doors):
        directory = os.path.join(self.directory, "weft-pair")
        plane = weft.Plane(self.processes, self.programs["weft"], directory, {"app": weft.inside(self.backends)})
        own, mesh = {kind: free_port() for kind in (*self.backends, "outbound")}, free_port()
        systems["weft"] = System("weft", own, list(weft.pair(plane, own, mesh, self.backends)))
        ca = os.path.join(plane.data, "ca.crt"), os.path.join(plane.data, "ca.key")
        doors["weft"] = (mesh, f"p{self.backends['http']}.app.default.weft", ca)

    def stop(self):
        self.processes.stop()

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_until(attempt, name, tries=20):
    """Until `attempt` does not fail."""
    for number in range(tries):
        try:
            return attempt()
        except (loads.LoadError, subprocess.TimeoutExpired) as error:
            if number + 1 == tries:
                sys.exit(f"{name} does not answer: {error}")
            time.sleep(0.2)
