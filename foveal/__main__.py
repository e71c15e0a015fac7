"""``python -m foveal`` is the command ``foveal``.

Example:
    >>> import subprocess, sys
    >>> command = [sys.executable, "-m", "foveal", "--version"]
    >>> print(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    foveal 0.1.0
"""

from foveal.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
