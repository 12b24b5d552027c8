"""Which files of the host a sandbox shows, read-only: Python's interpreter and standard library, and shared libraries.

Packages are out of sight, those of the interpreter and of the system, and with them rlft and the rewards wherever they
are installed; so are programs other than the interpreter.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from pathlib import Path

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
"""Where the dynamic linker looks without being told."""
_DATA = ("/etc/ld.so.cache", "/usr/lib/locale", "/usr/share/zoneinfo")
"""What the linker, the C library's locales and `zoneinfo` read."""
_PACKAGES = ("site-packages", "dist-packages", "ensurepip/_bundled")
"""Folders of the standard library that hold packages."""


def interpreter() -> tuple[str, list[str]]:
    """Path of this process's interpreter inside, and bubblewrap's arguments that show it and what it needs.

    An environment (a venv) is left out: its interpreter is a link to the one that made it.
    """
    return _interpreter(os.path.realpath(sys.base_prefix), sys.platlibdir)


@functools.cache
def _interpreter(prefix: str, library: str) -> tuple[str, list[str]]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    standard = [f"{name}/{version}" for name in sorted({"lib", library})]
    view = _View()
    if prefix == "/usr":
        inside = prefix
        view.show_libraries(keep=[f"/usr/{folder}" for folder in standard])
        for folder in standard:
            view.show(f"/usr/{folder}", f"/usr/{folder}")
    else:
        inside = "/python"
        view.show_libraries(keep=[])
        for name in sorted({"lib", library}):
            if not os.path.islink(f"{prefix}/{name}"):
                view.show(f"{prefix}/{name}", f"/python/{name}")
                for each in _folders(f"{prefix}/{name}"):
                    if f"{name}/{each}" not in standard:
                        view.hide(f"/python/{name}/{each}")
        view.link("/python", prefix)  # libraries may be looked for where they were built to be
    view.show(os.path.realpath(f"{prefix}/bin/{version}"), f"{inside}/bin/{version}")
    for folder in standard:
        for each in _PACKAGES:
            if os.path.isdir(f"{prefix}/{folder}/{each}"):
                view.hide(f"{inside}/{folder}/{each}")
    return f"{inside}/bin/{version}", view.arguments


class _View:
    """bubblewrap's arguments, as they come together."""

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self._shown: set[Path] = set()
        self._folders: set[Path] = {Path("/")}

    def show(self, source: str, path: str) -> None:
        """Show a file or folder of the host, where there is one and none above it is shown already."""
        if os.path.exists(source) and not self._shown & set(Path(path).parents):
            self._make_way(path)
            self.arguments += ["--ro-bind", source, path]
            self._shown.add(Path(path))

    def hide(self, folder: str) -> None:
        """Put an empty folder that takes nothing over one that is shown."""
        self.arguments += ["--tmpfs", folder, "--remount-ro", folder]

    def link(self, to: str, path: str) -> None:
        """Make a symbolic link."""
        self._make_way(path)
        self.arguments += ["--symlink", to, path]

    def show_libraries(self, *, keep: list[str]) -> None:
        """Show shared libraries, and of the Pythons that lie beside them only the folders to keep."""
        machine = sysconfig.get_config_var("MULTIARCH") or "-"
        for folder in _LIBRARIES:
            if os.path.islink(folder):
                self.link(os.readlink(folder), folder)
            elif os.path.isdir(f"{folder}/{machine}"):  # Debian's; other things than libraries lie beside it
                for name in (machine, *(loader.name for loader in Path(folder).glob("ld-*.so*"))):
                    self.show(f"{folder}/{name}", f"{folder}/{name}")
            elif os.path.isdir(folder):
                self.show(folder, folder)
                for name in _folders(folder):
                    if name.startswith(("python", "pypy")) and f"{folder}/{name}" not in keep:
                        self.hide(f"{folder}/{name}")
        for path in _DATA:
            self.show(path, path)

    def _make_way(self, path: str) -> None:
        """The folders above, open to a user other than the one who makes them, as bubblewrap's own are not."""
        for folder in reversed(Path(path).parents):
            if folder not in self._folders:
                self._folders.add(folder)
                self.arguments += ["--perms", "0755", "--dir", str(folder)]


def _folders(folder: str) -> list[str]:
    return sorted(each.name for each in os.scandir(folder) if each.is_dir(follow_symlinks=False))
