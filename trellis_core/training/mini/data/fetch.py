"""Fetch the pictures that mini is trained on and measured with.

    python -m trellis_core.training.mini.data.fetch --to runs/pictures

They are the 3391 pictures of the npm package @lobehub/fluent-emoji-3d (Microsoft's Fluent Emoji, MIT licence), fetched with
npm itself; 160 of them (`outside.txt`) are for the evaluation only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ....errors import InputError

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"


def fetch_pictures(to: Path) -> Path:
    """Put the pictures into the folder `to`, completely or not at all; one that is there stays as it is.

    Raises:
        InputError: npm is missing, or could not fetch the package.
    """
    if to.exists():
        return to
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("The training pictures come from an npm package, and npm is not installed: install Node.js.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        done = subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
        archive = next(Path(folder).glob("*.tgz"), None)
        if done.returncode or archive is None:
            raise InputError(f"npm could not fetch {PACKAGE}: {done.stderr.strip() or done.returncode}")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        os.replace(Path(folder) / "package" / "assets", to)
    return to


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trellis_core.training.mini.data.fetch", description=main.__doc__)
    parser.add_argument("--to", type=Path, default=Path("runs/pictures"))
    args = parser.parse_args(argv)
    print(f"{len(list(fetch_pictures(args.to).iterdir()))} pictures in {args.to}")


if __name__ == "__main__":
    main()
