"""Whether a program that exists is a suitable one."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from local_stack.tools.catalogue import NGINX, Tool
from local_stack.tools.errors import UnavailableError
from local_stack.tools.places import Places

_TIMEOUT_SECONDS = 20

# Everything that nginx writes is in the directory, its prefix, so that it runs for any user. Module files are the
# distribution's: Alpine's directory, then Debian's; they name modules below the prefix, where a link leads to them, as
# nginx-start makes it. `nginx -t` does not run Lua and so passes without its libraries: nginx is started instead, and
# Lua ends it before it opens a socket.
_NGINX_CONFIGURATION = """\
daemon off;
master_process off;
pid "{directory}/pid";
include /etc/nginx/modules/*.conf;
include /etc/nginx/modules-enabled/*.conf;
events {{}}
http {{
    access_log off;
    client_body_temp_path "{directory}/body";
    proxy_temp_path "{directory}/proxy";
    fastcgi_temp_path "{directory}/fastcgi";
    uwsgi_temp_path "{directory}/uwsgi";
    scgi_temp_path "{directory}/scgi";
    init_by_lua_block {{ require "resty.core" require "ngx.balancer" require "cjson" os.exit(0) }}
    upstream replicas {{ server 127.0.0.1; balancer_by_lua_block {{ }} }}
    server {{
        listen "unix:{directory}/socket" http2;
        location / {{ grpc_pass grpc://replicas; }}
    }}
}}
"""
_NGINX_MODULES = re.compile(r"--modules-path=(\S+)")
# "2026/07/08 11:03:29 [emerg] 7#7: message" once the configuration is read, "nginx: [emerg] message" before.
_NGINX_MESSAGE = re.compile(r"\[(?:emerg|alert|error)\] (?:\d+#\d+: )?(.*)")


def on_path(tool: Tool, places: Places) -> Path:
    """Return the first suitable program of a tool's name on PATH or in the servers' directories.

    Raises:
        UnavailableError: if there is none; it names each unsuitable one and why.

    """
    reasons = []
    seen = set()
    for candidate in (directory / tool.name for directory in places.directories):
        # access() first: it does not raise for a directory that may not be read.
        if not os.access(candidate, os.X_OK) or not candidate.is_file() or candidate.resolve() in seen:
            continue
        seen.add(candidate.resolve())
        try:
            check(tool, candidate)
        except UnavailableError as reason:
            reasons.append(str(reason))
        else:
            return candidate
    raise UnavailableError("; ".join(reasons) or "none")


def in_cache(tool: Tool, places: Places) -> Path:
    """Return the tool that was downloaded or built before.

    Raises:
        UnavailableError: if there is none, or it does not run.

    """
    cached = places.cached(tool)
    if not cached.is_file():
        raise UnavailableError(f"no {cached}")
    check(tool, cached)
    return cached


def check(tool: Tool, candidate: Path) -> None:
    """Run a program and see that it is suitable.

    Raises:
        UnavailableError: if it is not, or does not run at all.

    """
    output = _run(candidate, *tool.version_arguments)[1]
    found = re.search(tool.version_label + r"(\d\S*)", output)
    if not found:
        first = next(iter(output.splitlines()), "nothing")
        raise UnavailableError(f"{candidate} does not say its version, but {first!r}")
    if reason := tool.unsuitable(found[1]):
        raise UnavailableError(f"{candidate}: {reason}")
    if tool is NGINX:
        _check_nginx(candidate)


def _check_nginx(candidate: Path) -> None:
    """See that nginx balances by Lua."""
    with tempfile.TemporaryDirectory(prefix="local_stack-nginx-") as directory:
        configuration = Path(directory, "nginx.conf")
        configuration.write_text(_NGINX_CONFIGURATION.format(directory=directory), encoding="utf-8")
        if modules := _NGINX_MODULES.search(_run(candidate, "-V")[1]):
            Path(directory, "modules").symlink_to(modules[1])
        # -e: the compiled-in error log is not writable for everybody.
        code, output = _run(candidate, "-e", "stderr", "-p", directory, "-c", str(configuration))
    if code == 0:
        return
    # The last one is what ended it; the alerts before it may be advice.
    message = (_NGINX_MESSAGE.findall(output) or [f"exit {code}"])[-1].replace(f" in {configuration}", "")
    if "by_lua_block" in message:
        raise UnavailableError(f"{candidate} has no Lua module: {message}")
    if "module 'cjson' not found" in message:
        packages = f"{NGINX.apt_packages[-1]} on Debian and Ubuntu, {NGINX.apk_packages[-1]} on Alpine"
        raise UnavailableError(f"{candidate} has no JSON library for its Lua: install {packages}")
    raise UnavailableError(f"{candidate} does not run the stack's Lua: {message}")


def _run(candidate: Path, *arguments: str) -> tuple[int, str]:
    """Run a program; return its exit code and what it wrote."""
    try:
        done = subprocess.run(
            [candidate, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{candidate} did not end within {_TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise UnavailableError(f"{candidate} does not run: {error.strerror}") from error
    return done.returncode, done.stdout.decode(errors="replace").strip()
