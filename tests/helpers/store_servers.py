"""An S3 server in this process, and a proxy before it that fails as such servers do."""

from __future__ import annotations

import gc
import http.client
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.'
    b"</Message></Error>"
)
BROKEN = (
    b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We failed.</Message></Error>'
)


@contextmanager
def s3_server(bucket: str) -> Iterator[SimpleNamespace]:
    """A moto server with one bucket; the environment says where it is, as a user's would."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        yield SimpleNamespace(client=client, host=host, port=port, environment=dict(os.environ))
        client.close()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
    # The server leaves the files of its requests open, which a later test would be blamed for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@dataclass
class Faults:
    """What befalls requests: (method and path contain, what happens, how often)."""

    rules: list[list[object]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def add(self, contains: str, what: str, times: int) -> None:
        self.rules.append([contains, what, times])

    def next_for(self, line: str) -> str | None:
        self.seen.append(line)
        for rule in self.rules:
            contains, what, times = rule
            if contains in line and times > 0:
                rule[2] = times - 1
                return what
        return None


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[tuple[str, Faults]]:
    """The URL of a server that passes everything on, but for what its faults name."""
    faults, lock = Faults(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                fault = faults.next_for(f"{self.command} {self.path}")
            if fault == "throttle":
                self._answer(503, SLOW_DOWN)
                return
            if fault == "break":
                self._answer(500, BROKEN)
                return
            if fault == "hang up":
                self.close_connection = True
                self.connection.close()
                return
            # The signature covers the headers: the server must see those that were signed.
            behind = http.client.HTTPConnection(host, port, timeout=30)
            try:
                behind.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    behind.putheader(name, value)
                behind.endheaders(content)
                answer = behind.getresponse()
                body = answer.read()
                headers = answer.getheaders()
            finally:
                behind.close()
            self._send(answer.status, headers, body, fault)

        def _send(self, status, headers, body, fault) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            told = {name.lower(): value for name, value in headers}
            length = told.get("content-length") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "truncate":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(1)
                return
            if fault == "drip":
                for start in range(0, len(body), 8):
                    self.wfile.write(body[start : start + 8])
                    self.wfile.flush()
                    time.sleep(0.1)
                return
            self.wfile.write(body)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            """Clients that hang up are what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
