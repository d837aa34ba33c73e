"""What the provider's invocation path is compared with: nginx (Debian) as a proxy that keeps connections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import servers

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 10000000;
    upstream instance {{ server {address}; keepalive 512; keepalive_requests 10000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /function/hello/ {{
            proxy_pass http://instance/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Call-Id $request_id;
        }}
    }}
}}
"""


@contextmanager
def proxying(instance_url: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Before an instance: the function's URL, and nginx's process id."""
    if shutil.which("nginx") is None:
        raise SystemExit("this benchmark needs nginx (Debian: apt-get install nginx-light)")
    port = servers.free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, address=urlsplit(instance_url).netloc, port=port))
    url = f"http://127.0.0.1:{port}/function/hello/"
    with servers.running(["nginx", "-c", str(config), "-p", str(folder)], url) as process:
        yield url, process.pid
