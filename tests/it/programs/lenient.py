"""A server that takes much for the same: `lenient.py ADDRESS`. It decodes paths twice, knows parameters, backslashes
and dot segments, hosts and methods in any case, and makes variables of fields as CGI and WSGI do. For path /secret, host
secret.example, method DELETE and role admin it answers with the secret."""

import posixpath
import re
import socketserver
import sys
import urllib.parse

SECRET = b"the-crown-jewels"


class Handler(socketserver.StreamRequestHandler):
    timeout = 60

    def handle(self):
        while self.exchange():
            pass

    def exchange(self):
        line = self.rfile.readline(65536)
        if not line.strip():
            return False
        method, _, rest = line.strip().partition(b" ")
        target = rest.rsplit(b" ", 1)[0]
        fields = []
        while (field := self.rfile.readline(65536)).strip():
            name, _, value = field.partition(b":")
            # As a variable of CGI has it.
            fields.append((re.sub(rb"[^a-z0-9]", b"-", name.strip().lower()), value.strip()))
        length = next((int(value) for name, value in fields if name == b"content-length"), 0)
        if any(name == b"transfer-encoding" for name, _ in fields):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        else:
            self.rfile.read(length)
        body = SECRET if self.secret(method, target, fields) else b"public"
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return (b"connection", b"close") not in fields

    @staticmethod
    def secret(method, target, fields):
        hosts = [value for name, value in fields if name == b"host"]
        if match := re.match(rb"[a-zA-Z]+:/*([^/?#]*)(.*)", target):
            hosts, target = [match[1], *hosts], match[2] or b"/"
        path = re.split(rb"[?#]", target)[0]
        for _ in range(2):
            path = urllib.parse.unquote_to_bytes(path)
        path = path.replace(b"\\", b"/").split(b"\0")[0]
        path = b"/".join(part.split(b";")[0] for part in path.split(b"/"))
        path = posixpath.normpath(b"/" + path.lstrip(b"/"))
        if path == b"/secret" or path.startswith(b"/secret/"):
            return True
        for host in hosts:
            name = host.rsplit(b"@", 1)[-1].split(b":")[0].split(b",")[0].strip().rstrip(b".")
            if name.lower() == b"secret.example":
                return True
        roles = [part.strip().lower() for name, value in fields if name == b"x-role" for part in value.split(b",")]
        return method.strip().upper() == b"DELETE" or b"admin" in roles


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


host, port = sys.argv[1].rsplit(":", 1)
Server((host, int(port)), Handler).serve_forever()
