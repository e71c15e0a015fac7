"""A service in another process."""

import subprocess
import sys


def start(run, *flags):
    """Start a service; returns the process and the address, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "foveal", "serve", str(run), "--port", "0", "--device", "cpu", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.stderr.read())
    return process, line.split()[1].rstrip("/")


def stop(process):
    """End a service."""
    process.terminate()
    process.wait(60)
