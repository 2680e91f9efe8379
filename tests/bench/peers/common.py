"""What every bench here shares: ports, processes that end with it, what the kernel accounts to them, certificates."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

BODY = "x" * 50

# One worker; /50 is answered from memory, other paths are files below {dir}/www. The second port speaks HTTP/2 in clear
# and answers gRPC's unary calls: it reads the whole message, as a server does, and the answer is a file. What that costs
# is not charged to anybody.
NGINX_BACKEND = """
worker_processes 1; daemon off; pid {dir}/backend.pid; error_log {dir}/backend.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 1h; http2_max_concurrent_streams 256;
  open_file_cache max=16 inactive=1h; sendfile on; client_body_temp_path {dir}/body; proxy_temp_path {dir}/temp; root {dir}/www;
  server {{ listen 127.0.0.1:{port} reuseport; listen 127.0.0.2:{port} reuseport; listen 127.0.0.1:{port2} http2;
    location / {{ default_type text/plain; return 200 "{body}"; }}
    location /files/ {{ default_type application/octet-stream; }}
    location /files/grpc {{ default_type application/grpc; }}
    location /weft.Bench/Call {{ proxy_pass http://files/files/grpc; proxy_http_version 1.1; proxy_method GET;
      proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_set_header Connection "";
      add_trailer grpc-status 0; }} }}
  upstream files {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }} }}
"""


def free_port(taken=set()):
    """A port below the ephemeral range that nothing listens on."""
    for _ in range(5000):
        port = random.randrange(23100, 28000)
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    sys.exit("no free port between 23100 and 28000")


def at(port):
    return f"127.0.0.1:{port}"


def write(directory, name, text):
    """Writes a file below `directory`, with its folders, and gives its path."""
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb" if isinstance(text, bytes) else "w") as file:
        file.write(text)
    return path


class Processes:
    """What was started; `stop` ends just that. Where a directory is given, what they say is kept there."""

    def __init__(self, directory=None):
        self.all, self.directory = [], directory

    def start(self, *command):
        said = subprocess.DEVNULL
        if self.directory:
            said = open(os.path.join(self.directory, f"said-{len(self.all)}-{os.path.basename(command[0])}"), "wb")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, stdin=subprocess.DEVNULL)
        self.all.append(process)
        return process

    def stop(self, first=0):
        """Ends those that were started after the first so many."""
        ending, self.all = self.all[first:], self.all[:first]
        for process in reversed(ending):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in ending:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def family(pid):
    """The process and its children: nginx serves in a child."""
    pids = [pid]
    for other in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{other}/stat") as stat:
                if int(stat.read().rsplit(")", 1)[1].split()[1]) == pid:
                    pids.append(int(other))
        except OSError:
            pass
    return pids


def cpu_seconds(pid):
    """User and system time of all threads that live, from the scheduler (nanoseconds)."""
    total = 0
    for member in family(pid):
        for task in os.listdir(f"/proc/{member}/task"):
            try:
                with open(f"/proc/{member}/task/{task}/schedstat") as stat:
                    total += int(stat.read().split()[0])
            except OSError:
                # A thread that has just ended.
                pass
    return total / 1e9


def resident_mib(pid):
    total = 0
    for member in family(pid):
        with open(f"/proc/{member}/status") as status:
            total += int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))
    return total / 1024


def answers(url, host=None, timeout=2):
    """None where `url` answers 200, otherwise why not."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            answer.read()
            return None if answer.status == 200 else answer.status
    except (OSError, urllib.error.HTTPError) as error:
        return error


def wait_for(url, seconds=20, pause=0.05):
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        last = answers(url)
        if last is None:
            return
        time.sleep(pause)
    sys.exit(f"{url} did not answer within {seconds} s: {last}")


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def authority(directory):
    """A root for peers that have none: `ca.crt` and `ca.key`."""
    certificate, key = (os.path.join(directory, name) for name in ("ca.crt", "ca.key"))
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
            "-subj", "/O=bench", "-keyout", key, "-out", certificate)
    return certificate, key


def svid(directory, name, identity, ca, more=""):
    """A certificate for a SPIFFE id (and `more` names): paths of certificate and key, and of a file with both."""
    path = lambda end: os.path.join(directory, f"{name}.{end}")
    write(directory, f"{name}.ext", f"subjectAltName=URI:{identity}{more}\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n")
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/O=bench",
            "-keyout", path("key"), "-out", path("csr"))
    openssl("x509", "-req", "-in", path("csr"), "-CA", ca[0], "-CAkey", ca[1], "-set_serial", str(random.getrandbits(62)),
            "-days", "1", "-extfile", path("ext"), "-out", path("crt"))
    with open(path("crt")) as certificate, open(path("key")) as key:
        write(directory, f"{name}.pem", certificate.read() + key.read())
    return path("crt"), path("key"), path("pem")
