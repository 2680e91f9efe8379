"""A server that speaks first: `speaks_first.py HOST:PORT`. It says one line to each caller, then what the caller says."""

import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            self.wfile.write(b"220 said-in-the-mesh\r\n")
            self.wfile.write(self.rfile.readline())
        except ConnectionError:
            # Whoever looks whether the port is open goes away at once.
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


host, port = sys.argv[1].rsplit(":", 1)
Server((host, int(port)), Handler).serve_forever()
