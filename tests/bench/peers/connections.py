"""Idle connections of an app and of a peer in the mesh, and what a proxy's memory grows by for each."""

import select
import socket
import ssl
import sys
import time

import common

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request():
    """GET / in HPACK without a table (RFC 7541 appendix A: 2, 6 and 4; 1 with a literal value)."""
    authority = b"web"
    return frame(1, 5, 1, b"\x82\x86\x84\x01" + bytes([len(authority)]) + authority)


def context(certificate, key):
    """Of a client of mutual TLS that speaks HTTP/2 and takes any server."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.load_cert_chain(certificate, key)
    made.set_alpn_protocols(["h2"])
    return made


def resident_kib(pid):
    return common.resident_mib(pid) * 1024


class Mesh:
    """A connection of a peer that answers PING, which a sidecar sends every 10 s."""

    def __init__(self, address, context, name):
        plain = socket.create_connection(address, 10)
        # Otherwise the preface waits 40 ms for the acknowledgement of the handshake's end.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = context.wrap_socket(plain, server_hostname=name)
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
        while not got.endswith(common.BODY.encode()):
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
