"""Images over http, from a server in this process; everything else on the way in is refused."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sca_batch.errors import ImageError
from sca_batch.images.fetch import read_bytes
from sca_batch.images.policy import ReadPolicy


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        kind = self.path.split("?")[0].strip("/")
        if kind == "image":
            self._send(b"pixels")
        elif kind == "hop":
            self._redirect("/image")
        elif kind == "loop":
            self._redirect("/loop")
        elif kind == "inward":
            self._redirect(f"http://127.0.0.2:{self.server.server_port}/image")
        elif kind == "file":
            self._redirect("file:///etc/hostname")
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x" * 4096)
        elif kind == "slow":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.close_connection = True
        elif kind == "drip-headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            self._drip()
        elif kind == "drip-old":  # a body without a length, which ends with its connection
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
            self._drip()
        elif kind == "drip-closing":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            self._drip()
        elif kind == "busy":
            self.send_error(503)
        elif kind == "busy-once":
            self.send_error(503) if len(self.server.asked) == 1 else self._send(b"pixels")
        elif kind == "broken-once":
            if len(self.server.asked) > 1:
                self._send(b"pixels")
            self.close_connection = True
        elif kind.startswith("im%C3%A9ge%20"):
            self._send(b"pixels")
        else:
            self.send_error(404)

    def _send(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drip(self):
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        listening.asked = []
        listening.handle_error = lambda *args: None  # readers that leave early are the point
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def get(server, path, trusted=True, **limits):
    host = f"127.0.0.1:{server.server_port}"
    hosts = frozenset({host}) if trusted else frozenset()
    policy = ReadPolicy(allow_http=True, trusted_hosts=hosts, **limits)
    return read_bytes(f"http://{host}/{path}", policy)


def refused(call, *arguments, **options):
    with pytest.raises(ImageError) as caught:
        call(*arguments, **options)
    return caught.value.code


def test_an_image_is_fetched_and_nothing_of_ours_is_sent(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")
    assert get(server, "image?size=3") == b"pixels"
    assert get(server, "hop") == b"pixels"
    path, headers = server.asked[0]
    assert path == "/image?size=3"
    assert headers.keys() == {"Host", "Accept", "Accept-Encoding", "User-Agent"}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nowhere", "missing"),
        ("busy", "unreadable"),
        ("loop", "unreadable"),
        ("short", "unreadable"),
        ("inward", "forbidden_url"),
        ("file", "forbidden_url"),
    ],
)
def test_what_goes_wrong_has_a_code(server, path, code):
    assert refused(get, server, path) == code


def test_an_endless_body_ends_at_the_limit(server):
    assert refused(get, server, "endless", max_bytes=100_000) == "too_large"


@pytest.mark.parametrize("path", ["slow", "drip-headers", "drip-old", "drip-closing"])
def test_what_drips_ends_at_the_deadline(server, path):
    began = time.monotonic()
    assert refused(get, server, path, timeout_s=0.3) == "timeout"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("path", ["busy-once", "broken-once"])
def test_what_fails_for_a_moment_is_asked_again(server, path):
    assert get(server, path) == b"pixels"
    assert len(server.asked) == 2


def test_a_path_as_people_write_it_is_quoted_as_browsers_do(server):
    assert get(server, "imége x.jpg?a=b c&d=é") == b"pixels"
    assert get(server, "im%C3%A9ge%20x.jpg") == b"pixels"
    assert [path for path, _ in server.asked] == [
        "/im%C3%A9ge%20x.jpg?a=b%20c&d=%C3%A9", "/im%C3%A9ge%20x.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0",
        "[::1]", "[::ffff:127.0.0.1]", "[::]", "10.0.0.8", "172.16.3.4", "192.168.1.1",
        "169.254.169.254", "[fe80::1]", "[fd00::1]", "100.64.0.1", "224.0.0.1",
        "public.example@127.0.0.1", "[2002:7f00:1::]", "[64:ff9b::a00:1]", "[::7f00:1]",
        "[fec0::1]", "240.0.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_however_they_are_spelled(server, host):
    url = f"http://{host}:{server.server_port}/image"
    assert refused(read_bytes, url, ReadPolicy(allow_http=True)) == "forbidden_url"
    assert server.asked == []


def test_secrets_do_not_stand_in_the_error(server):
    with pytest.raises(ImageError) as caught:
        get(server, "nowhere?token=hush")
    assert "hush" not in str(caught.value)
