"""Programs in two processes, started by torchrun."""

import subprocess
import sys


def run_two_processes(*program) -> str:
    """Run a Python program with its arguments in two processes: what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    for _ in range(2):
        done = subprocess.run([*command, sys.executable, *program], capture_output=True, text=True, timeout=600)
        # torch's gloo threads may abort a process that has done its work and is exiting (1 run in 100, torch 2.13).
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
