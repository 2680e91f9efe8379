"""Talks to websocket_server.py and checks each answer. Argument: the address. Prints a line for each check."""

import sys

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

MIB = 1 << 20


def dial():
    return connect(
        f"ws://{sys.argv[1]}/room/1?a=b",
        proxy=None,
        subprotocols=["chat"],
        additional_headers={"X-Own": "yes"},
        max_size=4 * MIB,
        compression=None,
    )


def handshake(connection):
    assert connection.subprotocol == "chat"
    connection.send("request")
    host = sys.argv[1]
    assert connection.recv(60) == f"/room/1?a=b {host} yes"


def large(connection):
    binary = bytes(n % 251 for n in range(MIB))
    for _ in range(4):
        connection.send(binary)
        assert connection.recv(60) == binary
    text = "ä" * (MIB // 2)
    connection.send(text)
    assert connection.recv(60) == text


def several_at_once(connection):
    for number in range(100):
        connection.send(str(number))
    assert [connection.recv(60) for _ in range(100)] == [str(number) for number in range(100)]


def fragments(connection):
    connection.send(iter(["one ", "two ", "three"]))
    assert connection.recv(60) == "one two three"


def ping(connection):
    assert connection.ping().wait(60)


with dial() as connection:
    for check in [handshake, large, several_at_once, fragments, ping]:
        check(connection)
        print("ok", check.__name__, flush=True)
assert connection.close_code == 1000, connection.close_code
print("ok close", flush=True)

with dial() as connection:
    connection.send("close")
    try:
        connection.recv(60)
        raise AssertionError("not closed")
    except ConnectionClosedError as error:
        assert (error.rcvd.code, error.rcvd.reason) == (4001, "as you wish"), error
print("ok closed_by_the_server", flush=True)
