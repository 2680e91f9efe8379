"""A WebSocket server that gives messages back. Argument: the address to listen at."""

import sys

from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        if message == "close":
            connection.close(4001, "as you wish")
            return
        if message == "request":
            request = connection.request
            connection.send(f"{request.path} {request.headers['Host']} {request.headers['X-Own']}")
        else:
            connection.send(message)
    print("closed", connection.close_code, connection.close_reason, flush=True)


host, port = sys.argv[1].rsplit(":", 1)
serve(echo, host, int(port), subprotocols=["chat"], max_size=4 << 20, compression=None).serve_forever()
