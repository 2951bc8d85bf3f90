"""The same job with nchan, a module of nginx: writes a configuration and becomes nginx.

One process (`master_process off`), so that the pid which was started is the one whose CPU and memory count. Messages
are kept in shared memory, which is in its RSS as far as it is used. nchan does not count: it is given the finished
data line and a channel id, a favour to it. Each channel keeps its last 64 messages, so that a client can come back.
There is no ping by default; 15 s is set, as elsewhere.

A stream needs `Accept: text/event-stream` (403 without), and a publisher `Accept: text/json` to be told how many
subscribers there are in a form worth reading.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench.peers.listening import BACKLOG, parse_listens

# Beyond what the largest workload has; each costs 400 bytes before it is used, which is in memory before and after.
WORKER_CONNECTIONS = 19_000
MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
MODULE = "ngx_nchan_module.so"

CONFIGURATION = """\
load_module {module};
daemon off;
master_process off;
pid {scratch}/pid;
error_log stderr warn;
events {{
    worker_connections {connections};
    multi_accept on;
}}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_buffer_size 256k;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    nchan_shared_memory_size 2048m;
    nchan_message_buffer_length 64;
    nchan_message_timeout 1h;
    server {{
        listen {public} backlog={backlog};
        location = /stream {{
            nchan_subscriber eventsource;
            nchan_channel_id "$arg_user_id/$arg_strategy_id";
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval 15;
        }}
    }}
    server {{
        listen {internal} backlog={backlog};
        location = /internal/emit {{
            nchan_publisher http;
            nchan_channel_id "$arg_user_id/$arg_strategy_id";
        }}
        location = /healthz/ready {{
            return 200;
        }}
    }}
}}
"""


def missing() -> str | None:
    """What keeps nchan from being measured here, or None."""
    if _nginx() is None:
        return "no nginx"
    return None if _module() else f"no {MODULE}"


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _module() -> Path | None:
    return next((path for folder in MODULES if (path := Path(folder) / MODULE).exists()), None)


def main() -> None:
    """Becomes nginx."""
    listens = parse_listens("nchan in nginx, as a peer for the benchmarks.")
    nginx, module = _nginx(), _module()
    if nginx is None or module is None:
        sys.exit(f"bench: {missing()}")
    configuration = Path(listens.scratch) / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            module=module,
            scratch=listens.scratch,
            connections=WORKER_CONNECTIONS,
            public=listens.public_listen,
            internal=listens.internal_listen,
            backlog=BACKLOG,
        ),
        encoding="utf-8",
    )
    os.execv(nginx, [nginx, "-c", str(configuration), "-p", listens.scratch])


if __name__ == "__main__":
    main()
