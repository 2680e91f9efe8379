"""Python's ssl as a foreign client: `foreign_tls.py mesh|discovery ADDRESS CERT KEY ROOT`, certificate and key in PEM.
Prints `ok NAME` for each thing that was seen."""

import socket
import ssl
import struct
import sys

KIND, ADDRESS, CERT, KEY, ROOT = sys.argv[1:]
HOST, PORT = ADDRESS.rsplit(":", 1)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"


def context(certificate=True, alpn=("h2",), newest=ssl.TLSVersion.TLSv1_3, oldest=ssl.TLSVersion.TLSv1_2):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(ROOT)
    made.minimum_version, made.maximum_version = oldest, newest
    if certificate:
        made.load_cert_chain(CERT, KEY)
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


def connect():
    return socket.create_connection((HOST, int(PORT)), timeout=20)


def talk(made, name=None):
    """The first frame of HTTP/2 that a server sends to whom it lets in, with the session."""
    session = made.wrap_socket(connect(), server_hostname=name)
    session.sendall(PREFACE)
    frame = b""
    while len(frame) < 9:
        part = session.recv(9 - len(frame))
        if not part:
            raise ConnectionError("closed")
        frame += part
    assert frame[3] == 4, frame
    return session


def refused(what, made, *alerts):
    """The server must refuse, with one of these words in the alert if there are any."""
    try:
        talk(made)
    except (ssl.SSLError, ConnectionError) as error:
        # Versions of Python differ in how they spell an alert.
        said = str(error).upper().replace(" ", "_")
        assert not alerts or any(alert in said for alert in alerts), f"{what}: {error}"
        return print("ok", what)
    raise AssertionError(f"{what}: let in")


def hello(name):
    """A ClientHello for a host name of any bytes: one of the same length is asked for and replaced, and what does not
    fit into a label is added with all lengths above it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    placeholder = ("x" * 50 + ".") * 3 + "weft"
    session = context().wrap_bio(incoming, outgoing, server_hostname=placeholder)
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    data = bytearray(outgoing.read())
    at = data.index(placeholder.encode())
    more = len(name) - len(placeholder)

    def longer(offset, size):
        number = int.from_bytes(data[offset : offset + size], "big") + more
        data[offset : offset + size] = number.to_bytes(size, "big")

    # Behind record, handshake, version, random, session id, cipher suites and compression come the extensions.
    extensions = 5 + 4 + 2 + 32
    extensions += 1 + data[extensions]
    extensions += 2 + struct.unpack_from("!H", data, extensions)[0]
    extensions += 1 + data[extensions]
    for offset, size in ((3, 2), (6, 3), (extensions, 2), (at - 7, 2), (at - 5, 2), (at - 2, 2)):
        longer(offset, size)
    data[at : at + len(placeholder)] = name
    return bytes(data)


def certificate(made, name):
    session = talk(made, name)
    shown = session.getpeercert(True)
    session.close()
    return shown


def main():
    session = talk(context())
    assert session.version() == "TLSv1.3" and session.selected_alpn_protocol() == "h2", session.version()
    print("ok tls13")
    # A ticket would have come with or before the first bytes.
    assert session.session is None or not session.session.has_ticket, "a session ticket"
    session.close()
    print("ok no_ticket")
    for newest in (ssl.TLSVersion.TLSv1_2,):
        refused("tls12_refused", context(newest=newest), "PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL")
    refused("wrong_alpn_refused", context(alpn=("http/1.1",)), "NO_APPLICATION_PROTOCOL")
    if KIND == "mesh":
        refused("no_alpn_refused", context(alpn=()))
        refused("no_certificate_refused", context(certificate=False), "CERTIFICATE_REQUIRED")
    with connect() as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: weft\r\n\r\n")
        answer = b""
        try:
            while part := plain.recv(4096):
                answer += part
        except ConnectionError:
            pass
        # Nothing, or an alert of TLS.
        assert not answer or answer[0] == 0x15, answer
    print("ok plaintext_closed")
    shown = certificate(context(), None)
    for name in ("weft", "no.such.service", "p80.other.elsewhere.weft", "p99999.a.b.weft"):
        assert certificate(context(), name) == shown, name
    print("ok names_select_no_identity")
    for name in (b"x" * 256, b"x" * 300, b"x." * 4000, b"\0" * 20, b"\xff\xfe", b"a\0b.weft", b"", b"-.-", b"127.0.0.1", b".", b"..weft"):
        with connect() as raw:
            raw.sendall(hello(name))
            try:
                while raw.recv(4096):
                    # The server goes on or says an alert; it waits for us no longer than it has to.
                    raw.shutdown(socket.SHUT_WR)
            except (ConnectionError, OSError):
                pass
    assert certificate(context(), None) == shown
    print("ok odd_names_break_nothing")


main()
