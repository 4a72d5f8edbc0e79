"""Mounts that lack what file systems usually have, by a preloaded library.

Under the folder named by ``MOUNT`` each call in ``REFUSED`` (``name=errno``, separated by commas) fails with
that error; with ``name=errno=2`` twice only, and ``name=hang`` gives no answer.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

_HEAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <unistd.h>

static int inside(const char *path) {
    const char *mount = getenv("MOUNT");
    return mount && path && !strncmp(path, mount, strlen(mount));
}
static int holds(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}
/* The error that a call is to fail with; 0 for none, -1 for no answer at all. */
static int refused(const char *name, int *made) {
    const char *at = getenv("REFUSED");
    size_t length = strlen(name);
    for (; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : "") {
        if (strncmp(at, name, length) || at[length] != '=') continue;
        if (!strncmp(at + length + 1, "hang", 4)) return -1;
        char *end;
        int number = (int)strtol(at + length + 1, &end, 10);
        if (*end == '=' && (*made)++ >= atoi(end + 1)) return 0;
        return number;
    }
    return 0;
}
"""

_CALL = """
{returns}{name}({parameters}) {{
    static {returns}(*real)({types});
    static int made;
    if (!real) real = ({returns}(*)({types}))dlsym(RTLD_NEXT, "{name}");
    int error = {there} ? refused("{group}", &made) : 0;
    while (error == -1) pause();
    if (error) {{ errno = error; return {failure}; }}
    return real({arguments});
}}
"""

_FUNCTIONS = [  # group, name, parameters, where: the path or descriptor that is asked
    ("mmap", "mmap", "void *a, size_t n, int p, int f, int d, off_t o", "d >= 0 && holds(d)"),
    ("mmap", "mmap64", "void *a, size_t n, int p, int f, int d, off_t o", "d >= 0 && holds(d)"),
    ("flock", "flock", "int d, int o", "holds(d)"),
    ("fsync", "fsync", "int d", "holds(d)"),
    ("fsync", "fdatasync", "int d", "holds(d)"),
    ("chmod", "chmod", "const char *p, mode_t m", "inside(p)"),
    ("chmod", "fchmod", "int d, mode_t m", "holds(d)"),
    ("chmod", "fchmodat", "int r, const char *p, mode_t m, int f", "inside(p)"),
    ("utime", "utimensat", "int r, const char *p, const struct timespec *t, int f", "inside(p)"),
    ("utime", "futimens", "int d, const struct timespec *t", "holds(d)"),
    ("truncate", "ftruncate", "int d, off_t n", "holds(d)"),
    ("truncate", "ftruncate64", "int d, off_t n", "holds(d)"),
    ("pwrite", "pwrite", "int d, const void *b, size_t n, off_t o", "holds(d)"),
    ("pwrite", "pwrite64", "int d, const void *b, size_t n, off_t o", "holds(d)"),
    ("rename", "rename", "const char *p, const char *q", "inside(q)"),
    ("rename", "renameat", "int r, const char *p, int s, const char *q", "inside(q)"),
    ("link", "link", "const char *p, const char *q", "inside(q)"),
    ("link", "linkat", "int r, const char *p, int s, const char *q, int f", "inside(q)"),
    ("link", "symlink", "const char *p, const char *q", "inside(q)"),
    ("statvfs", "statvfs", "const char *p, struct statvfs *s", "inside(p)"),
    ("statvfs", "statvfs64", "const char *p, struct statvfs64 *s", "inside(p)"),
]


def _source() -> str:
    text = _HEAD
    for group, name, parameters, there in _FUNCTIONS:
        returns, failure = "int ", "-1"
        if group == "mmap":
            returns, failure = "void *", "MAP_FAILED"
        elif group == "pwrite":
            returns = "ssize_t "
        words = [parameter.strip() for parameter in parameters.split(",")]
        arguments = ", ".join(word.rsplit(" ", 1)[1].lstrip("*") for word in words)
        types = ", ".join(word.rsplit(" ", 1)[0] + (" *" if "*" in word else "") for word in words)
        text += _CALL.format(
            returns=returns,
            name=name,
            parameters=parameters,
            types=types,
            there=there,
            group=group,
            failure=failure,
            arguments=arguments,
        )
    return text


@functools.cache
def library() -> Path:
    """Compile the library, once a process; skips the test where there is no compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/proc/self/fd").exists():
        pytest.skip("needs a C compiler and Linux")
    folder = Path(tempfile.mkdtemp(prefix="ckptkit-mounts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        (folder / "mounts.c").write_text(_source())
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-w",
            "-o",
            str(folder / "mounts.so"),
            str(folder / "mounts.c"),
        ]
        subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this compiler does not compile it: {error.stderr[-200:]!r}")
    return folder / "mounts.so"


def refusing(mount: Path, refused: Mapping[str, int | str]) -> dict[str, str]:
    """Environment of a process for which a folder is such a mount."""
    calls = ",".join(f"{name}={how}" for name, how in refused.items())
    return {"LD_PRELOAD": str(library()), "MOUNT": str(mount), "REFUSED": calls}
