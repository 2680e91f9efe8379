"""A server that asks another one for each request: `calls_on.py HOST:PORT URL`. It passes the answer on, and answers 502 when
there is none."""

import http.server
import sys
import urllib.request


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            with urllib.request.urlopen(sys.argv[2], timeout=30) as answer:
                status, body = answer.status, answer.read()
        except OSError as error:
            status, body = 502, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


host, port = sys.argv[1].rsplit(":", 1)
Server((host, int(port)), Handler).serve_forever()
