"""Weft: a control plane with its resources, and sidecars with one worker."""

import json
import os

from common import at, free_port, wait_for, write

MESH = """apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {{name: default}}
spec:
  tracing: {{samplingPercent: {sampling}, endpoint: "http://127.0.0.1:{otlp}"}}
  accessLog: {{mode: "Off"}}
"""

# A service outside the mesh: the hop in plaintext.
OUTSIDE = """apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
endpoints: {endpoints}
ports: [{{name: http, port: {backend}}}]
"""

# The service of the pair, into which only the client may call.
INSIDE = """apiVersion: v1
kind: Service
metadata: {{name: app}}
spec:
  selector: {{app: app}}
  ports:
  - {{name: http, port: {http}, targetPort: {http}}}
  - {{name: http2, port: {http2}, targetPort: {http2}}}
  - {{name: grpc, port: {grpc}, targetPort: {grpc}}}
  - {{name: tcp, port: {tcp}, targetPort: {tcp}}}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: app}}
spec:
  targetRefs: [{{kind: Service, name: app}}]
  action: Allow
  rules: [{{from: [{{serviceAccounts: [client]}}]}}]
---
apiVersion: weft.dev/v1alpha1
kind: PeerAuthentication
metadata: {{name: app}}
spec:
  targetRefs: [{{kind: Service, name: app}}]
  mode: Strict
"""


def outside(name, addresses, backend):
    return OUTSIDE.format(name=name, endpoints=json.dumps([{"addresses": [host]} for host in addresses]), backend=backend)


def inside(backends):
    return INSIDE.format(**backends)


class Plane:
    """A control plane; its resources are files, its data is in `directory`. Sidecars are the same program, unless
    `sidecar_program` is a command for others."""

    def __init__(self, processes, program, directory, resources, sampling="1", sidecar_program=None):
        self.sidecar_program = sidecar_program
        self.processes, self.program, self.data = processes, program, os.path.join(directory, "data")
        xds, self.api, otlp = free_port(), free_port(), free_port()
        self.xds = at(xds)
        for name, text in resources.items():
            write(directory, f"resources/{name}.yaml", text)
        # What --dev would make of it is every trace, which is not what a mesh runs with.
        write(directory, "resources/mesh.yaml", MESH.format(sampling=sampling, otlp=otlp))
        self.process = processes.start(
            program, "control-plane", "--dev", "--xds-listen", self.xds, "--api-listen", at(self.api), "--otlp-listen", at(otlp),
            "--data-dir", self.data, "--resources", os.path.join(directory, "resources"), "--log", "warn",
        )
        wait_for(f"http://{at(self.api)}/healthz")

    def sidecar_command(self, name, *arguments):
        return [*(self.sidecar_program or [self.program, "sidecar"]), "--name", name, "--workers", "1", "--xds", self.xds, "--log", "warn", *arguments]

    def sidecar(self, name, *arguments):
        """The process of a sidecar that is ready; `admin` of it is its port for metrics."""
        admin = free_port()
        process = self.processes.start(*self.sidecar_command(name, "--admin-listen", at(admin), *arguments))
        wait_for(f"http://{at(admin)}/ready")
        process.admin = admin
        return process


def hop_arguments(port):
    return ["--upstream", f"app={port}"]


def pair(plane, own, mesh, backends):
    """The sidecars of client and server: processes."""
    ports = [argument for kind, port in backends.items() for argument in ("--port", f"{kind}:{port}/{kind}")]
    server = plane.sidecar("app-1", "--label", "app=app", "--mesh-listen", at(mesh), *ports)
    upstreams = [argument for kind, port in backends.items() for argument in ("--upstream", f"app:{port}={own[kind]}")]
    return plane.sidecar("client", "--outbound-listen", at(own["outbound"]), *upstreams), server
