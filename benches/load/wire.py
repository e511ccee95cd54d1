"""A PostgreSQL client that costs next to nothing, for what pgbench cannot do: idle crowds, bulk data, many tenants."""

import base64
import functools
import hashlib
import hmac
import os
import socket
import ssl
import struct

from servers import DATABASE, PASSWORD, ROLE, Failed

TIMEOUT_SECONDS = 60
READY = b"Z\x00\x00\x00\x05I"
QUERY, TERMINATE, COPY_DONE = b"Q", b"X", b"c\x00\x00\x00\x04"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def query(text):
    return message(QUERY, text.encode() + b"\x00")


def digest(key, text):
    return hmac.new(key, text, hashlib.sha256).digest()


@functools.cache
def client_key(salt, iterations):
    """Salt and iterations are the role's, the same for all its logins: PBKDF2 runs once."""
    return digest(hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, iterations), b"Client Key")


@functools.cache
def tls_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Session:
    """One logged-in connection; the socket blocks."""

    def __init__(self, target, tenant=DATABASE, encrypted=False, wrong=False):
        self.socket = socket.create_connection(("127.0.0.1", target.port), TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kept = b""
        if encrypted:
            self.socket.sendall(SSL_REQUEST)
            if self.socket.recv(1) != b"S":
                raise Failed(f"{target.name} does not offer TLS")
            self.socket = tls_context().wrap_socket(self.socket)
        database, options = target.login(tenant)
        self.log_in(target.name, database, options, wrong)

    def log_in(self, name, database, options, wrong):
        settings = ["user", ROLE, "database", database] + (["options", options] if options else [])
        body = struct.pack("!i", 3 << 16) + b"".join(word.encode() + b"\x00" for word in settings) + b"\x00"
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        first = f"n=,r={base64.b64encode(os.urandom(18)).decode()}"
        while True:
            kind, body = self.receive()
            if kind == b"E":
                raise Failed(f"{name} refuses a login: {body.decode(errors='replace')}")
            if kind == b"Z":
                return
            step = struct.unpack("!i", body[:4])[0] if kind == b"R" else None
            if step == 10:  # SASL
                opening = f"n,,{first}".encode()
                self.socket.sendall(message(b"p", b"SCRAM-SHA-256\x00" + struct.pack("!i", len(opening)) + opening))
            elif step == 11:  # SASLContinue
                self.socket.sendall(message(b"p", self.proof(first, body[4:].decode(), wrong)))

    @staticmethod
    def proof(first, challenge, wrong):
        fields = dict(field.split("=", 1) for field in challenge.split(","))
        key = client_key(base64.b64decode(fields["s"]), int(fields["i"]))
        final = f"c=biws,r={fields['r']}"
        signature = digest(hashlib.sha256(key).digest(), f"{first},{challenge},{final}".encode())
        proof = bytes(a ^ b ^ wrong for a, b in zip(key, signature))
        return f"{final},p={base64.b64encode(proof).decode()}".encode()

    def receive(self):
        """The next message: its type and body."""
        while len(self.kept) < 5 or len(self.kept) < 1 + struct.unpack("!i", self.kept[1:5])[0]:
            more = self.socket.recv(65536)
            if not more:
                raise Failed("a connection was closed")
            self.kept += more
        end = 1 + struct.unpack("!i", self.kept[1:5])[0]
        kind, body, self.kept = self.kept[:1], self.kept[5:end], self.kept[end:]
        return kind, body

    def swallow(self, buffer):
        """Reads up to ReadyForQuery without looking at anything before it; returns the bytes read."""
        total, end = 0, b""
        while end != READY:
            size = self.socket.recv_into(buffer)
            if not size:
                raise Failed("a connection was closed")
            total += size
            end = (end + bytes(buffer[max(size - 6, 0):size]))[-6:]
        return total

    def close(self):
        self.socket.sendall(message(TERMINATE, b""))
        self.socket.close()
