#!/usr/bin/env python3
"""Resident memory of a sidecar for each idle connection: mutual TLS on the mesh port, plaintext on the outbound port.

One sidecar with one worker; the connections are opened one after the other, each in three states that are measured
apart: with nothing asked yet (mesh: TLS, preface and SETTINGS), after one request, and gone again. What is printed is the
growth of VmRSS (/proc/PID/status) of the sidecar, divided by the connections, in KiB, and what stays when all are closed.

Usage: tests/bench/idle.py [--weft target/release/weft] [--connections 1000] [--json FILE]
Needs: openssl (the command), nginx (Debian package); everything is on loopback, two descriptors for each connection.
"""

import argparse
import json
import os
import resource
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import hop

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
ID = "spiffe://weft.local/ns/default/sa/idle"


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request():
    """GET / in HPACK without a table (RFC 7541 appendix A: 2, 6 and 4; 1 with a literal value)."""
    authority = b"web"
    return frame(1, 5, 1, b"\x82\x86\x84\x01" + bytes([len(authority)]) + authority)


def svid(directory):
    """A certificate for [`ID`], signed with the key of the control plane of this bench."""
    at = lambda name: os.path.join(directory, name)
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    with open(at("extensions"), "w") as file:
        file.write(f"subjectAltName=URI:{ID}\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n")
    run("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/O=idle",
        "-keyout", at("client.key"), "-out", at("client.csr"))
    run("x509", "-req", "-in", at("client.csr"), "-CA", at("data/ca.crt"), "-CAkey", at("data/ca.key"),
        "-set_serial", "4711", "-days", "1", "-extfile", at("extensions"), "-out", at("client.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(at("client.crt"), at("client.key"))
    context.set_alpn_protocols(["h2"])
    return context


def resident_kib(pid):
    return hop.resident_mib(pid) * 1024


class Mesh:
    """A connection of a peer that answers PING, which a sidecar sends every 10 s."""

    def __init__(self, address, context, name):
        self.stream = context.wrap_socket(socket.create_connection(address, 10), server_hostname=name)
        self.got = b""
        self.stream.sendall(PREFACE)
        # The first frame of the server is its SETTINGS.
        while not any(kind == 4 for kind, *_ in self.frames()):
            pass
        self.stream.sendall(frame(4, 1, 0, b""))

    def frames(self):
        """The frames of the next read, of which PING is answered."""
        part = self.stream.recv(65536)
        if not part:
            sys.exit("the sidecar closed the connection")
        self.got += part
        found = []
        while len(self.got) >= 9 and len(self.got) >= 9 + int.from_bytes(self.got[:3], "big"):
            end = 9 + int.from_bytes(self.got[:3], "big")
            kind, flags, payload, self.got = self.got[3], self.got[4], self.got[9:end], self.got[end:]
            if kind in (3, 7):
                sys.exit(f"the sidecar refused: frame {kind}, {payload!r}")
            if kind == 6 and not flags & 1:
                self.stream.sendall(frame(6, 1, 0, payload))
            found.append((kind, flags))
        return found

    def ask(self):
        self.stream.sendall(request())
        while not any(kind == 0 and flags & 1 for kind, flags in self.frames()):
            pass

    def close(self):
        self.stream.close()


class Plain:
    """A connection of an app."""

    def __init__(self, address):
        self.stream = socket.create_connection(address, 10)

    def frames(self):
        sys.exit(f"the sidecar said {self.stream.recv(65536)!r} unasked")

    def ask(self):
        self.stream.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        got = b""
        while not got.endswith(hop.BODY.encode()):
            part = self.stream.recv(65536)
            if not part:
                sys.exit(f"the sidecar closed the connection: {got!r}")
            got += part

    def close(self):
        self.stream.close()


def pump(peers):
    """Lets peers answer what they are asked."""
    poll = select.poll()
    known = {peer.stream.fileno(): peer for peer in peers}
    for number in known:
        poll.register(number, select.POLLIN)
    for number, _ in poll.poll(0):
        known[number].frames()


def settled_kib(pid, peers):
    """The resident memory once it does not change any more."""
    before = resident_kib(pid)
    for _ in range(50):
        pump(peers)
        time.sleep(0.2)
        now = resident_kib(pid)
        if abs(now - before) < 16:
            return now
        before = now
    return before


def measure(pid, connect, count):
    base, peers = settled_kib(pid, []), []
    for number in range(count):
        peers.append(connect())
        if number % 50 == 0:
            pump(peers)
    fresh = settled_kib(pid, peers)
    for number, peer in enumerate(peers):
        peer.ask()
        if number % 50 == 0:
            pump(peers)
    used = settled_kib(pid, peers)
    for peer in peers:
        peer.close()
    after = settled_kib(pid, [])
    per = lambda now: round((now - base) / count, 2)
    return {"base": round(base), "fresh": per(fresh), "used": per(used), "stays": per(after)}


def start_all(processes, directory, weft):
    """The addresses of the mesh port and the outbound port of one sidecar, and its process."""
    backend, xds, api, admin, outbound, port = (hop.free_port() for _ in range(6))
    at = "127.0.0.1:{}".format
    with open(os.path.join(directory, "backend.conf"), "w") as file:
        file.write(hop.NGINX_BACKEND.format(dir=directory, port=backend, body=hop.BODY))
    processes.start("nginx", "-c", os.path.join(directory, "backend.conf"), "-p", directory)
    processes.start(weft, "control-plane", "--dev", "--xds-listen", at(xds), "--api-listen", at(api),
                    "--data-dir", os.path.join(directory, "data"))
    hop.wait_for(f"http://{at(api)}/healthz")
    sidecar = processes.start(
        weft, "sidecar", "--name", "web-1", "--label", "app=web", "--workers", "1", "--xds", at(xds),
        "--admin-listen", at(admin), "--outbound-listen", at(outbound), "--mesh-listen", at(port),
        "--port", f"http:{backend}/http",
    )
    hop.wait_for(f"http://{at(admin)}/ready")
    return sidecar, ("127.0.0.1", port), ("127.0.0.1", outbound), f"p{backend}.web.default.weft"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    directory, processes = tempfile.mkdtemp(prefix="weft-idle-"), hop.Processes()
    try:
        sidecar, mesh_port, outbound, name = start_all(processes, directory, os.path.abspath(arguments.weft))
        context = svid(directory)
        kinds = {"mesh": lambda: Mesh(mesh_port, context, name), "outbound": lambda: Plain(outbound)}
        # What is made once (pools, tables, caches) is not a connection's.
        for connect in kinds.values():
            measure(sidecar.pid, connect, 20)
        count = arguments.connections
        result = {kind: measure(sidecar.pid, connect, count) for kind, connect in kinds.items()}
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{count} connections; KiB for each: with nothing asked, after a request, and left when closed")
    for name, found in result.items():
        print(f"{name:9} {found['fresh']:7} {found['used']:7} {found['stays']:7}   (process before: {found['base']} KiB)")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
