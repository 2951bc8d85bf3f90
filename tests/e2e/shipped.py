"""Real proxies in front of the server, each with the very file that is shipped in `deploy/`, on free ports of loopback.

Only names, ports and paths in the files are replaced. Around nginx' stands the worst http block that somebody may have.
"""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from msgspec import Struct

from tests.e2e.programs import installed
from tests.process import ROOT, free_port, wait_until

NGINX_FILE = ROOT / "deploy" / "nginx" / "tallywire.conf"
CADDY_FILE = ROOT / "deploy" / "caddy" / "Caddyfile"

NAME, UPSTREAM = "stream.example.com", "127.0.0.1:8080"
CERTIFICATE, KEY = "/etc/ssl/tallywire/fullchain.pem", "/etc/ssl/tallywire/privkey.pem"
"""What the files say, for whoever deploys them to replace."""

Changes = Mapping[str, str]
"""What is replaced in the text of a file, and by what."""

NO_CHANGES: Changes = {}

STOP_SECONDS = 20

NGINX = """\
daemon off;
master_process off;
pid {scratch}/pid;
error_log stderr warn;
events {{
}}
http {{
    access_log off;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;

    gzip on;
    gzip_types *;
    gzip_min_length 1;
    gzip_proxied any;
    proxy_buffering on;
    proxy_cache_path {scratch}/cache keys_zone=everything:1m;
    proxy_cache everything;
    proxy_cache_key $uri;
    proxy_cache_valid any 1h;
    proxy_ignore_headers X-Accel-Buffering X-Accel-Expires Cache-Control Expires Set-Cookie Vary;

    include {scratch}/tallywire.conf;

    # A location that knows nothing of streams; only here the server's own headers are heard.
    server {{
        listen 127.0.0.1:{bare_port} ssl http2;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        proxy_ignore_headers X-Accel-Limit-Rate;
        location / {{
            proxy_pass http://127.0.0.1:{server_port};
        }}
    }}
}}
"""


class Certificate(Struct, frozen=True):
    """A certificate for localhost that nobody has signed, and its key."""

    certificate: Path
    key: Path


class Front(Struct, frozen=True):
    """A running proxy: the port with TLS that it listens on, and that of the server behind it, which need not run."""

    port: int
    server_port: int

    @property
    def base(self) -> str:
        """What the URLs of browsers begin with."""
        return f"https://localhost:{self.port}"


def self_signed(directory: Path) -> Certificate:
    """A new one, in files in this directory."""
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj /CN=localhost"
    command = [installed("openssl"), *options.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-out", made.certificate, "-keyout", made.key], check=True, capture_output=True)
    return made


@contextmanager
def nginx(scratch: Path, certificate: Certificate, changes: Changes = NO_CHANGES) -> Iterator[Front]:
    """With the shipped server block."""
    with _nginx(scratch, certificate, changes) as (front, _bare_port):
        yield front


@contextmanager
def bare_nginx(scratch: Path, certificate: Certificate) -> Iterator[Front]:
    """With a location of somebody who has never heard of us: what holds here is due to the server's own headers."""
    with _nginx(scratch, certificate, NO_CHANGES) as (front, bare_port):
        yield Front(bare_port, front.server_port)


@contextmanager
def caddy(scratch: Path, certificate: Certificate, changes: Changes = NO_CHANGES) -> Iterator[Front]:
    """With the shipped Caddyfile."""
    program = installed("caddy")
    front = Front(free_port(), free_port())
    file = scratch / "Caddyfile"
    places = {
        # The first brace opens the block of global options.
        "\n{\n": f"\n{{\n\tadmin off\n\thttp_port {free_port()}\n\tdefault_bind 127.0.0.1\n",
        f"{NAME} {{": f"{front.base} {{",
        "# tls ": "tls ",
        CERTIFICATE: str(certificate.certificate),
        KEY: str(certificate.key),
        UPSTREAM: f"127.0.0.1:{front.server_port}",
    }
    file.write_text(replaced(CADDY_FILE.read_text(), {**places, **changes}))
    command = [program, "run", "--config", str(file), "--adapter", "caddyfile"]
    with _running(command, scratch, front):
        yield front


FRONTS: Mapping[str, Callable[..., AbstractContextManager[Front]]] = {"nginx": nginx, "caddy": caddy}
"""The proxies that a configuration is shipped for."""


def replaced(text: str, changes: Changes) -> str:
    """The text of a shipped file with what an operator replaces; each must be there."""
    for old, new in changes.items():
        assert old in text, f"the file that is shipped has no {old!r}"
        text = text.replace(old, new)
    return text


@contextmanager
def _nginx(scratch: Path, certificate: Certificate, changes: Changes) -> Iterator[tuple[Front, int]]:
    program = installed("nginx")
    front, bare_port = Front(free_port(), free_port()), free_port()
    places = {
        "listen 443 ": f"listen 127.0.0.1:{front.port} ",
        # Not everywhere is there IPv6.
        "listen [::]:443 ": f"listen 127.0.0.1:{free_port()} ",
        NAME: "localhost",
        CERTIFICATE: str(certificate.certificate),
        KEY: str(certificate.key),
        UPSTREAM: f"127.0.0.1:{front.server_port}",
    }
    (scratch / "tallywire.conf").write_text(replaced(NGINX_FILE.read_text(), {**places, **changes}))
    file = scratch / "nginx.conf"
    file.write_text(
        NGINX.format(
            scratch=scratch,
            bare_port=bare_port,
            server_port=front.server_port,
            certificate=certificate.certificate,
            key=certificate.key,
        )
    )
    with _running([program, "-c", str(file), "-p", str(scratch)], scratch, front):
        yield front, bare_port


@contextmanager
def _running(command: list[str], scratch: Path, front: Front) -> Iterator[None]:
    """A process in the foreground that listens for connections; it is ended, by its own number, whatever happens."""
    log = scratch / "log"
    places = {"HOME": str(scratch), "XDG_DATA_HOME": str(scratch), "XDG_CONFIG_HOME": str(scratch)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=scratch, env=os.environ | places, stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or _listens(front.port), f"{command[0]} listens")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
