"""An HTTP proxy before an S3 server that injects faults, seeded: the same seed and requests give the same faults.

| fault | what the client sees |
|---|---|
| error_500, slow_down_503 | the answer of an overloaded server; nothing was done |
| reset_before | the connection is reset; nothing was done |
| reset_after | the connection is reset, but the request *was* carried out |
| delay | the answer comes late |
| truncate | the answer's body ends halfway |
| flip_answer | one bit of the answer's body is wrong |
| flip_request | one bit of the request's body is wrong when it reaches the server |
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "error_500", "slow_down_503", "reset_before", "reset_after", "delay", "truncate", "flip_answer", "flip_request",
)  # fmt: skip
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>injected</Message></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass
class FaultPlan:
    """Which faults come, how often (0 to 1), and how long a delay is; counts what was injected."""

    faults: Sequence[str] = FAULTS
    rate: float = 0.2
    seed: int = 0
    delay_s: float = 0.3
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - faults, not secrets
        self._lock = threading.Lock()

    def draw(self, *, has_request_body: bool) -> tuple[str, float]:
        """The fault of the next request ("" for none), and a position in [0, 1) for it."""
        with self._lock:
            chosen = self._random.random() < self.rate
            fault, position = self._random.choice(list(self.faults)), self._random.random()
            if not chosen or (fault == "flip_request" and not has_request_body):
                return "", position
            if fault not in ("truncate", "flip_answer"):  # those count when there is a body to damage
                self.injected[fault] += 1
            return fault, position

    def count(self, fault: str) -> None:
        """Note a fault that was injected."""
        with self._lock:
            self.injected[fault] += 1


@contextmanager
def fault_proxy(upstream: str, plan: FaultPlan, *, port: int = 0) -> Iterator[str]:
    """The address of a proxy before `upstream` (`http://host:port`), for as long as the block lasts; port 0: any."""
    target = urlsplit(upstream)

    class Handler(_Handler):
        server_address = (str(target.hostname), int(target.port or 80))
        fault_plan = plan

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Forwards one connection's requests, or does not."""

    protocol_version = "HTTP/1.1"
    server_address: tuple[str, int]
    fault_plan: FaultPlan

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: addresses in requests are signed."""

    def _handle(self) -> None:
        body = bytearray(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        fault, position = self.fault_plan.draw(has_request_body=bool(body))
        if fault == "error_500":
            self._answer_error(500, "InternalError")
        elif fault == "slow_down_503":
            self._answer_error(503, "SlowDown")
        elif fault == "reset_before":
            self._reset()
        else:
            if fault == "delay":
                time.sleep(self.fault_plan.delay_s)
            if fault == "flip_request":
                _flip(body, position)
            self._forward(bytes(body), fault, position)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _forward(self, body: bytes, fault: str, position: float) -> None:
        """Send the request on and its answer back, reset or damaged if so planned."""
        connection = http.client.HTTPConnection(*self.server_address, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = bytearray(answer.read())
        finally:
            connection.close()
        if fault == "reset_after":
            self._reset()
            return
        length = len(data)
        if data and fault in ("truncate", "flip_answer"):
            self.fault_plan.count(fault)
            if fault == "truncate":
                del data[int(position * length) :]
            else:
                _flip(data, position)
        self._answer(answer, bytes(data), length)

    def _answer(self, answer: http.client.HTTPResponse, data: bytes, length: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(length)
        if size is not None and answer.status != 204:
            self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(data)
        if len(data) < length:
            self._reset()

    def _answer_error(self, status: int, code: str) -> None:
        data = b"" if self.command == "HEAD" else _ERROR.format(code).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        """Close so that the other side gets a reset, not an end."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def finish(self) -> None:
        """The connection may be gone already."""
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def handle(self) -> None:
        """A client that goes away is no error of the proxy."""
        try:
            super().handle()
        except (ConnectionError, ValueError, http.client.HTTPException):
            return


def _flip(data: bytearray, position: float) -> None:
    """Invert one bit."""
    bit = int(position * len(data) * 8)
    data[bit // 8] ^= 1 << (bit % 8)
