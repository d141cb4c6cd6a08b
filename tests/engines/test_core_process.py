"""A core is forked from a server that has all imports. It sees its parent's environment, and the server ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT

# In a process of its own: multiprocessing keeps one server for each process.
SCRIPT = """
import os, sys
from pathlib import Path
from caprl_ray.engines import core_process, internals
core_process.IMPORTED = ["wave"]
core_process.import_ahead()
os.environ |= {"LATER": "yes", "CHANGED": "after"}
core = core_process._Context(Path(sys.argv[2]), chunked=False).Process(target=exec, args=(sys.argv[1],))
core.start()
core.join()
server = core_process.forkserver._forkserver._forkserver_pid
os.unlink(core_process.forkserver._forkserver._forkserver_address)
internals.end_forkserver()
internals.end_forkserver()
print(os.path.exists(f"/proc/{int(server)}"))
sys.exit(core.exitcode)
"""
CORE = """
import json, os, sys, setproctitle

setproctitle.setproctitle("core")
title = open("/proc/self/cmdline").read().rstrip(chr(0))
print(json.dumps(["wave" in sys.modules, os.environ["LATER"], os.environ["CHANGED"], title]), flush=True)
raise OSError("no such luck")
"""


def test_a_core_has_the_imports_of_the_server_the_environment_of_its_parent_and_a_title_and_says_its_fault(
    tmp_path: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, CORE, tmp_path / "fault"],
        env={"CHANGED": "before"} | os.environ | {"SPT_NOENV": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1 and (tmp_path / "fault").read_text() == "OSError: no such luck", run.stderr
    core, server_is_there = run.stdout.splitlines()
    assert json.loads(core) == [True, "yes", "after", "core"]
    assert server_is_there == "False"
