"""Disks that refuse: a library for LD_PRELOAD that answers system calls on some files with an error.

`REFUSED` in the environment, which a process may change while it runs, is "CALL NUMBER PART": open, read or lock, the
number of the error, and a part of the path of the files (all files, where it is empty).
"""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#define NEXT(name) static __typeof__(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)
static int refused(const char *call, const char *path) {
    const char *wish = getenv("REFUSED");
    char wanted[16], part[256] = "";
    int number;
    if (!wish || !path || sscanf(wish, "%15s %d %255s", wanted, &number, part) < 2) return 0;
    if (strcmp(wanted, call) || !strstr(path, part)) return 0;
    errno = number;
    return 1;
}
static int refused_file(const char *call, int file) {
    char link[64], path[4096];
    if (!getenv("REFUSED")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    return refused(call, path);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
    NEXT(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return refused("open", path) ? -1 : next(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    NEXT(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return refused("open", path) ? -1 : next(at, path, flags, mode); }
#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    NEXT(name); return refused("open", path) ? 0 : next(path, mode); }
#define PREAD(name, offset_t) ssize_t name(int file, void *into, size_t size, offset_t at) { \
    NEXT(name); return refused_file("read", file) ? -1 : next(file, into, size, at); }
#define PREADV(name, offset_t) ssize_t name(int file, const struct iovec *into, int size, offset_t at) { \
    NEXT(name); return refused_file("read", file) ? -1 : next(file, into, size, at); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)
PREAD(pread, off_t) PREAD(pread64, off64_t) PREADV(preadv, off_t) PREADV(preadv64, off64_t)
ssize_t read(int file, void *into, size_t size) {
    NEXT(read); return refused_file("read", file) ? -1 : next(file, into, size); }
size_t fread(void *into, size_t size, size_t count, FILE *file) {
    NEXT(fread); return refused_file("read", fileno(file)) ? 0 : next(into, size, count, file); }
int flock(int file, int operation) {
    NEXT(flock); return refused_file("lock", file) ? -1 : next(file, operation); }
"""


@functools.cache
def library() -> Path:
    """The compiled library; skips the test where there is no C compiler."""
    if not (compiler := shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("no C compiler")
    folder = Path(tempfile.mkdtemp(prefix="strange-disk-"))
    (folder / "disk.c").write_text(_SOURCE)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "disk.so", folder / "disk.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "disk.so"


def environment(refused: str = "") -> dict[str, str]:
    """The environment of a process on such a disk."""
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return {**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": here, **({"REFUSED": refused} if refused else {})}
