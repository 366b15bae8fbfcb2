"""`python -m cloudjob` and `python -c` in processes that need not import torch and its like again: 4 s of CPU each.

`Forked` is a subprocess.Popen, `run` a subprocess.run, of a command [sys.executable, "-m" or "-c", ...]. A server,
started by the first of them, imports the heavy libraries, and nothing of cloudjob. Per command it forks a child, which
takes over the files, environment and folder of the command and runs the program as its last statement, so that the
interpreter ends as always. The child becomes a child of the process that asked: its process id, signals and exit code
are the real ones.

Two things are not those of a fresh interpreter. The order of a set of strings is that of the server, so where bytes are
compared, a real process has made one side. And what libraries read from the environment while they are imported cannot
change afterwards: another value of such a variable is refused, and needs a real process.
"""

import atexit
import ctypes
import functools
import gc
import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys

HEAVY = (
    *("torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "numpy", "h5py", "hdf5plugin", "PIL.Image"),
    *("scipy.ndimage", "scipy.optimize", "skimage.metrics", "skimage.restoration.inpaint", "shapely", "rasterio.warp"),
    *("rasterio.features", "rasterio.shutil", "requests", "http.server", "pydantic", "yaml", "defusedxml.ElementTree"),
)
READ_AT_IMPORT = ("OMP_", "OPENBLAS_", "MKL_", "HDF5_", "PYTHON", "LD_")
MESSAGE = 1 << 20
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


class Forked(subprocess.Popen):
    def __init__(self, command, *, env=None, cwd=None, start_new_session: bool = False, **streams):
        executable, *arguments = map(os.fspath, command)
        env = dict(os.environ if env is None else env)
        changed = _at_import(env).items() ^ _server()[1].items()
        if executable != sys.executable or arguments[0] not in ("-m", "-c") or changed:
            raise ValueError(f"this needs a real process: {command}, environment {sorted(changed)}")
        cwd = os.path.abspath(cwd or ".")
        self._wish = {"arguments": arguments, "env": env, "cwd": cwd, "session": start_new_session}
        super().__init__(command, **streams)

    def _execute_child(self, *parts):
        """What Popen calls to fork and execute, after it has made the pipes."""
        streams = parts[10:16:2], parts[11:16:2]
        stdin, stdout, stderr = streams[0][0], streams[1][1], streams[1][2]
        files = [own if given == -1 else given for own, given in enumerate((stdin, stdout, stderr))]
        requests, _ = _server()
        socket.send_fds(requests, [json.dumps(self._wish).encode()], files)
        self.pid = int(requests.recv(MESSAGE))
        self._child_created = True
        self._close_pipe_fds(*parts[10:16])


def run(command, *, timeout: float = 300, **options) -> subprocess.CompletedProcess:
    """As subprocess.run with check=False, and the output as text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Forked(command, text=True, **(pipes | options)) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _at_import(env: dict) -> dict:
    own = ("HDF5_USE_FILE_LOCKING", "HDF5_PLUGIN_PATH")  # each command sets, or forgets, them itself
    return {name: value for name, value in env.items() if name.startswith(READ_AT_IMPORT) and name not in own}


@functools.cache
def _server() -> tuple[socket.socket, dict]:
    """The line to the server, and what it has read from the environment."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # who loses its parent within becomes a child of this process
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def end():
        ours.close()
        server.wait(10)

    atexit.register(end)
    assert ours.recv(MESSAGE) == b"ready"
    return ours, _at_import(os.environ)


# --- the server -------------------------------------------------------------------------------------------------
def _serve(requests: socket.socket) -> tuple[dict, list[int]]:
    """Forks a child per request, and returns in it alone: with what was asked for, and its standard files."""
    requests.send(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE, 3)
        if not message:
            os._exit(0)  # who asked has ended
        read, write = os.pipe()
        if not (between := os.fork()):
            if child := os.fork():
                os.write(write, str(child).encode())
                os._exit(0)  # it leaves the child to the process that asked
            for descriptor in (read, write, requests.detach()):
                os.close(descriptor)
            return json.loads(message), files
        os.waitpid(between, 0)
        requests.send(os.read(read, 100))
        for descriptor in (read, write, *files):
            os.close(descriptor)


def _become(wish: dict, files: list[int]) -> None:
    """Takes over what a new process is given."""
    import numpy as np

    for place, descriptor in enumerate(files):
        os.dup2(descriptor, place)
        os.close(descriptor)
    for name, place, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        errors = "backslashreplace" if name == "stderr" else None
        stream = open(place, mode, errors=errors, closefd=False)  # noqa: SIM115
        if mode == "w":
            stream.reconfigure(line_buffering=name == "stderr" or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if wish["session"]:
        os.setsid()
    os.chdir(wish["cwd"])
    os.environ.clear()
    os.environ.update(wish["env"])
    np.random.seed()  # noqa: NPY002  (the other generators do it by themselves)


if __name__ == "__main__":
    for library in HEAVY:
        if importlib.util.find_spec(library.partition(".")[0]):  # an extra may be missing
            importlib.import_module(library)
    gc.collect()
    gc.freeze()  # what no collection looks at stays shared memory
    assert len(os.listdir("/proc/self/task")) == 1, "a library started a thread, which no child would have"
    wish, files = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(wish, files)
    kind, program, *_ = sys.argv = wish["arguments"]
    if kind == "-m":
        sys.path[0], sys.argv = os.getcwd(), sys.argv[1:]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = "", ["-c", *sys.argv[2:]]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
