"""Callers that end their side after the request, as `nc -N` does, and wait for the answer. Each prints what it has checked."""

import socket
import sys

host, port = sys.argv[1].rsplit(":", 1)


def ask(name, request, expected):
    with socket.create_connection((host, int(port)), timeout=30) as caller:
        caller.sendall(request)
        caller.shutdown(socket.SHUT_WR)
        answer = b""
        while part := caller.recv(65536):
            answer += part
    assert answer.split(b" ")[1] == b"200" and answer.endswith(expected), (name, answer)
    print("ok", name)


ask("http11", b"GET / HTTP/1.1\r\nHost: slow\r\n\r\n", b"late")
ask("http10", b"GET / HTTP/1.0\r\nHost: slow\r\n\r\n", b"late")
ask("length", b"POST / HTTP/1.1\r\nHost: slow\r\nContent-Length: 4\r\n\r\nbody", b"late")
ask("chunked", b"POST / HTTP/1.1\r\nHost: slow\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", b"late")
