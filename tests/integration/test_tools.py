"""The tools that this machine has."""

import multiprocessing
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from local_stack.settings import ROOT
from local_stack.tools import TOOLS, ToolError, find
from testbed.catalogue import catalogue
from testbed.processes import Processes
from tests.support.machine import Machine

NOBODY = 65534
# Lines of a shell script that change the configuration it is given.
WITHOUT_MODULES = "/^include /d"
WITHOUT_RESTY_CORE = "s,^http {,&lua_package_path /none/?.lua;,"  # `nginx -t` succeeds with it
WITHOUT_CJSON = "s,^http {,&lua_package_cpath /none/?.so;,"

pytestmark = pytest.mark.usefixtures("tools")


def with_nginx(directory: Path, edit: str) -> Machine:
    """Returns a machine whose nginx edits the configuration that it is given, if any."""
    machine = Machine(directory)
    change = f'[ ! -f "$conf" ] || sed -i "{edit}" "$conf"'
    machine.script("nginx", "for conf; do :; done", change, f'exec {find("nginx")} "$@"')
    return machine


@pytest.mark.parametrize(
    ("tool", "argument"), [("nginx", "-v"), ("consul", "version"), ("consul-template", "-version")]
)
def test_tool_that_is_found_has_a_suitable_version(tool: str, argument: str) -> None:
    done = subprocess.run([find(tool), argument], capture_output=True, text=True, check=True)
    assert TOOLS[tool].unsuitable(done.stdout + done.stderr) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_nginx_with_lua_is_found_by_a_user_who_is_not_root() -> None:
    nginx = find("nginx")
    # A fork: a new interpreter may not be readable for another user.
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


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (WITHOUT_MODULES, 'nginx has no Lua module: unknown directive "init_by_lua_block"'),
        (WITHOUT_RESTY_CORE, "not run the stack's Lua: failed to load the 'resty.core' module"),
        (WITHOUT_CJSON, "no JSON library for its Lua: install lua-cjson or lua5.1-cjson"),
    ],
)
def test_nginx_without_a_part_of_its_lua_is_refused(tmp_path: Path, edit: str, reason: str) -> None:
    assert reason in with_nginx(tmp_path, edit).refusal("nginx", install=False)


def test_image_is_not_built_with_an_nginx_whose_libraries_do_not_fit(tmp_path: Path) -> None:
    codes = []
    for directory in (find("nginx").parent, with_nginx(tmp_path, WITHOUT_CJSON).bin):
        env = {"PATH": f"{directory}:/usr/bin:/bin"}
        done = subprocess.run([ROOT / "build/check-nginx"], env=env, capture_output=True, text=True, check=False)
        codes.append((done.returncode == 0, "module 'cjson' not found" in done.stderr))
    assert codes == [(True, False), (False, True)]


def test_nginx_that_is_too_old_is_not_started(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.script("nginx", f'[ "$1" = -v ] || touch {tmp_path}/started', "echo nginx version: nginx/1.18")
    assert "version 1.18 is older than 1.22" in machine.refusal("nginx", install=False)
    assert not (tmp_path / "started").exists()


def test_consul_has_its_user_interface(processes: Processes) -> None:
    with (
        catalogue(processes, []) as address,
        urllib.request.urlopen(f"http://{address}/ui/", timeout=5) as response,
    ):
        assert b"<title>Consul" in response.read()
