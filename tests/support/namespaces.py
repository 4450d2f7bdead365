"""Machines within this one, as far as their processes can tell: each has a network, a host name, processes, /tmp/ray
and /dev/shm of its own; all other files are shared. Linux, root, iproute2 and util-linux.

They hang on a switch, from which one can be cut off: what it sends, and what is sent to it, is then lost without a
word, as if a cable were pulled behind the next switch.
"""

import os
import shutil
import subprocess
import uuid

INIT = """\
hostname {name} && mount -t tmpfs none /dev/shm && mount -t tmpfs none /tmp/ray && mount -t proc none /proc &&
echo ready && while :; do sleep 1000; done
"""
"""A shell as the first process, since it reaps what others leave behind."""


def missing():
    """What keeps this host from having namespaces; nothing, if it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    return f"needs {', '.join(absent)}" if absent else ""


class Machine:
    """One of a network, on which nothing runs but a first process."""

    def __init__(self, namespace, name):
        self.name, self._started = name, []
        os.makedirs("/tmp/ray", exist_ok=True)
        self._first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", namespace, "unshare", "--pid", "--fork",
             "--kill-child", "--uts", "--ipc", "--mount", "bash", "-c", INIT.format(name=self.name)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._first.stdout.readline() == "ready\n"
        with open(f"/proc/{self._first.pid}/task/{self._first.pid}/children") as children:
            (child,) = children.read().split()
        self._enter = ["nsenter", "--target", child, "--net", "--pid", "--uts", "--ipc", "--mount"]

    def start(self, words, **options):
        """A process on it, as `subprocess.Popen`."""
        process = subprocess.Popen(
            [*self._enter, f"--wd={os.getcwd()}", *words], stdin=subprocess.DEVNULL, **options
        )
        self._started.append(process)
        return process

    def run(self, *words):
        """What a command on it says.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        return subprocess.run(
            [*self._enter, *words], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def kill(self, pid, signum):
        """Signal a process by the number that it has there."""
        self.run("kill", f"-{int(signum)}", str(pid))

    def power_off(self):
        """SIGKILL for every process on it, at once."""
        self._first.kill()
        self._first.wait()
        for process in self._started:
            process.kill()  # one whose child was stopped has stopped, too
            process.wait()
        self._first.stdout.close()


class Network:
    """As many machines as there are names, at 10.77.0.1, 10.77.0.2, ...; for a `with` statement."""

    def __init__(self, *names):
        self._key = uuid.uuid4().hex[:6]  # of this network, as several may be there
        self._names = names
        self.machines, self._namespaces = [], []

    def __enter__(self):
        try:
            switch = self._add("switch")
            _ip(switch, "link", "add", "bridge", "type", "bridge")
            _ip(switch, "link", "set", "bridge", "up")
            for number, name in enumerate(self._names, start=1):
                self.machines.append(self._machine(switch, name, number))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.power_off()
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=True)

    def cut(self, machine):
        """Nothing comes from it or gets to it from now on."""
        _ip(self._namespaces[0], "link", "set", f"to-{machine.name}", "nomaster")

    def mend(self, machine):
        """Undo `cut`."""
        _ip(self._namespaces[0], "link", "set", f"to-{machine.name}", "master", "bridge")

    def _machine(self, switch, name, number):
        namespace = self._add(name)
        _ip(switch, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "net0", "netns", namespace)
        self._join(switch, name)
        _ip(namespace, "address", "add", f"10.77.0.{number}/24", "dev", "net0")
        for device in ("net0", "lo"):
            _ip(namespace, "link", "set", device, "up")
        machine = Machine(namespace, name)
        machine.address = f"10.77.0.{number}"
        return machine

    def _join(self, switch, name):
        _ip(switch, "link", "set", f"to-{name}", "master", "bridge")
        _ip(switch, "link", "set", f"to-{name}", "up")

    def _add(self, name):
        namespace = f"admrl-{self._key}-{name}"
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self._namespaces.append(namespace)
        return namespace


def _ip(namespace, *words):
    subprocess.run(["ip", "-n", namespace, *words], check=True)
