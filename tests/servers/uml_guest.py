#!/usr/bin/python3
"""Process 1 of a :class:`servers.uml.Machine`: runs in the guest, with Debian's own Python and nothing else.

Requests and answers are lines of JSON on the first serial line. Each request is one program; several run at once.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import tty

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SCRATCH = ("/run", "/tmp", "/var/lib/nfs", "/mnt")


def mount(kind, target, options="defaults"):
    subprocess.run(["mount", "-n", "-t", kind, "-o", options, "none", target], check=True)


def set_up():
    os.environ["PATH"] = PATH
    os.environ["LC_ALL"] = "C.UTF-8"
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    with open("/proc/cmdline") as file:
        settings = json.loads(file.read().partition("machine=")[2].split()[0])
    for folder in SCRATCH:
        mount("tmpfs", folder)
    for seen, (held, access) in settings["hostfs"].items():
        os.makedirs(seen, exist_ok=True)
        mount("hostfs", seen, f"{access},{held}")
    with open("/proc/sys/kernel/hostname", "w") as file:
        file.write(settings["name"])
    modules = f"/usr/lib/uml/modules/{os.uname().release}"
    os.makedirs("/run/modules/lib/modules")
    os.symlink(modules, f"/run/modules/lib/modules/{os.uname().release}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)


class Line:
    """The serial line: whole lines in, whole lines out."""

    def __init__(self, descriptor):
        tty.setraw(descriptor)
        self.descriptor = descriptor
        self.lock = threading.Lock()

    def send(self, answer):
        data = json.dumps(answer).encode() + b"\n"
        with self.lock:
            while data:
                data = data[os.write(self.descriptor, data) :]

    def lines(self):
        rest = b""
        while data := os.read(self.descriptor, 65536):
            *whole, rest = (rest + data).split(b"\n")
            yield from whole


def run(line, request):
    answer = {"id": request["id"], "status": -1, "out": "", "err": ""}
    try:
        process = subprocess.Popen(
            request["argv"],
            env={**os.environ, **request["env"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=request["timeout"])
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = b"", b"not done in time"
        answer.update(status=process.poll(), out=os.fsdecode(out), err=os.fsdecode(err))
    except OSError as error:
        answer["err"] = str(error)
    line.send(answer)


def main():
    line = Line(set_up())
    line.send({"id": 0})
    for text in line.lines():
        request = json.loads(text)
        threading.Thread(target=run, args=(line, request), daemon=True).start()
    with open("/proc/sysrq-trigger", "w") as file:  # whoever asked is gone
        file.write("o")
    signal.pause()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print("guest:", error, file=sys.stderr, flush=True)
        raise
