"""Calls a server that speaks first, a number of times: `hears_first.py HOST:PORT TIMES`. Says nothing before it has heard
the first line, and prints it."""

import socket
import sys

host, port = sys.argv[1].rsplit(":", 1)
for number in range(int(sys.argv[2])):
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        lines = connection.makefile("rwb")
        print(lines.readline().decode().strip())
        lines.write(b"%d\n" % number)
        lines.flush()
        assert lines.readline() == b"%d\n" % number
