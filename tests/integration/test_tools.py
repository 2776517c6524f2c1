"""The tools that this machine has."""

import multiprocessing
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from local_stack.tools import TOOLS, ToolError, find
from local_stack.tools.places import Places

NOBODY = 65534
# A line of a shell script that changes the configuration it is given, if any.
WITHOUT_CJSON = '[ ! -f "$conf" ] || sed -i "s,^http {,&lua_package_cpath /none/?.so;," "$conf"'


def available(tool: str) -> Path:
    """Return a tool's path; without it, fail in CI and skip elsewhere."""
    try:
        return find(tool, install=False)
    except ToolError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def nginx() -> Path:
    return available("nginx")


def with_nginx(directory: Path, *lines: str) -> Places:
    """Give a machine whose nginx is a shell script; $conf is the configuration that it gets, if any."""
    script = directory / "nginx"
    script.write_text("\n".join(("#!/bin/sh", "for conf; do :; done", *lines, "")), encoding="utf-8")
    script.chmod(0o755)
    return Places(directories=(directory,), cache=directory)


def test_nginx_with_lua_is_found(nginx: Path) -> None:
    version = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    assert TOOLS["nginx"].unsuitable(version) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nginx_with_lua_is_found_by_who_is_not_root(nginx: Path) -> None:
    # A fork: a new interpreter may not be readable for somebody else.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def look() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            sender.send(str(find("nginx", install=False)))
        except ToolError as error:
            sender.send(str(error))

    process = context.Process(target=look)
    process.start()
    assert receiver.poll(30), "no answer"
    assert receiver.recv() == str(nginx)
    process.join()


def test_nginx_without_the_lua_module_is_refused(nginx: Path, tmp_path: Path) -> None:
    places = with_nginx(tmp_path, '[ ! -f "$conf" ] || sed -i "/^include /d" "$conf"', f'exec {nginx} "$@"')
    with pytest.raises(ToolError, match=r'nginx has no Lua module: unknown directive "init_by_lua_block"'):
        find("nginx", install=False, places=places)


def test_nginx_without_lua_resty_core_is_refused(nginx: Path, tmp_path: Path) -> None:
    # `nginx -t` succeeds with it.
    places = with_nginx(
        tmp_path,
        '[ ! -f "$conf" ] || sed -i "s,^http {,&lua_package_path /none/?.lua;," "$conf"',
        f'exec {nginx} "$@"',
    )
    with pytest.raises(ToolError, match=r"not run the stack's Lua: failed to load the 'resty\.core' module"):
        find("nginx", install=False, places=places)


def test_nginx_without_lua_cjson_is_refused(nginx: Path, tmp_path: Path) -> None:
    places = with_nginx(tmp_path, WITHOUT_CJSON, f'exec {nginx} "$@"')
    with pytest.raises(ToolError, match=r"no JSON library for its Lua: install lua-cjson on Debian"):
        find("nginx", install=False, places=places)


def test_an_image_is_not_built_with_an_nginx_whose_libraries_do_not_fit(nginx: Path, tmp_path: Path) -> None:
    with_nginx(tmp_path, WITHOUT_CJSON, f'exec {nginx} "$@"')
    codes = []
    for directory in (nginx.parent, tmp_path):
        env = {"PATH": f"{directory}:/usr/bin:/bin"}
        done = subprocess.run([ROOT / "build/check-nginx"], env=env, capture_output=True, text=True, check=False)
        codes.append((done.returncode == 0, "module 'cjson' not found" in done.stderr))
    assert codes == [(True, False), (False, True)]


def test_nginx_that_is_too_old_is_not_started(tmp_path: Path) -> None:
    places = with_nginx(tmp_path, f'[ "$1" = -v ] || touch {tmp_path}/started', "echo nginx version: nginx/1.18")
    with pytest.raises(ToolError, match=r"version 1\.18 is older than 1\.22"):
        find("nginx", install=False, places=places)
    assert not (tmp_path / "started").exists()


@pytest.fixture
def consul_address(tmp_path: Path) -> Iterator[str]:
    """Run the Consul that is found as a development agent, and give the address of its HTTP API."""
    http, server, serf = free_ports(3)
    arguments = [
        *("agent", "-dev", "-bind=127.0.0.1", f"-http-port={http}", f"-server-port={server}"),
        *(
            f"-serf-lan-port={serf}",
            "-serf-wan-port=-1",
            "-dns-port=-1",
            "-grpc-port=-1",
            "-grpc-tls-port=-1",
        ),
    ]
    log = tmp_path / "consul.log"
    with (
        log.open("wb") as file,
        subprocess.Popen([available("consul"), *arguments], stdout=file, stderr=file) as agent,
    ):
        yield f"http://127.0.0.1:{http}"
        agent.terminate()
    print(log.read_text(encoding="utf-8"))


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()


def test_consul_has_its_user_interface(consul_address: str) -> None:
    deadline = time.monotonic() + 30
    page = b""
    while not page and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{consul_address}/ui/", timeout=5) as response:  # noqa: S310 (http)
            page = response.read()
        time.sleep(0.1)
    assert b"<title>Consul" in page


def test_consul_template_runs() -> None:
    done = subprocess.run([available("consul-template"), "-version"], capture_output=True, text=True, check=True)
    assert TOOLS["consul-template"].unsuitable(done.stdout) == ""
