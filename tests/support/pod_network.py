"""Pods as network namespaces of this machine, each with its own address, joined by one that only forwards.

What a pod may send is decided by its own routing rules, one for each permission, and by no other route: a connection
whose packets no rule lets out fails, and one that its target may not answer is never opened.
"""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

# Listens on all ports of the command line, then says so.
_SERVER = """
import socket, sys, time
held = [socket.create_server(("0.0.0.0", int(port)), backlog=64) for port in sys.argv[1:]]
print("ready", flush=True)
time.sleep(600)
"""
# Tries all [address, port] of stdin at once and says which could be opened.
_CLIENT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def opens(target):
    try:
        socket.create_connection(target, timeout=1.0).close()
        return True
    except OSError:
        return False
targets = [tuple(target) for target in json.load(sys.stdin)]
with ThreadPoolExecutor(64) as pool:
    print(json.dumps([target for target, opened in zip(targets, pool.map(opens, targets)) if opened]))
"""


@dataclass(frozen=True)
class Permission:
    """Packets that a pod may send: of TCP connections to `port` of `address`, or answers from its own `port` to it."""

    address: str
    port: int
    answer: bool = False


class PodNetwork:
    """A network of pods, by name."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._prefix = f"g{secrets.token_hex(3)}"
        self._servers: list[subprocess.Popen[str]] = []

    def open(self, ports: Sequence[int]) -> None:
        """Make the namespaces, and have every pod listen on all ports."""
        self._ip("netns", "add", self._switch)
        self._in(self._switch, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for number, (name, address) in enumerate(self._addresses.items()):
            self._join(number, name, address)
        for name in self._addresses:
            command = ["ip", "netns", "exec", self._space(name), sys.executable, "-c", _SERVER, *map(str, ports)]
            self._servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for server in self._servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"

    def permit(self, name: str, permissions: Sequence[Permission]) -> None:
        """From now on the pod sends this and nothing else."""
        lines = ["rule del pref 32766", "rule del pref 32767"]
        for each in sorted(set(permissions), key=str):
            side = "sport" if each.answer else "dport"
            lines.append(f"rule add pref 100 ipproto tcp {side} {each.port} to {each.address} lookup main")
        batch = ["ip", "-n", self._space(name), "-batch", "-"]
        subprocess.run(batch, input="\n".join(lines) + "\n", text=True, check=True)

    def opened(self, name: str, targets: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Which of these addresses and ports the pod can open a connection to."""
        command = ["ip", "netns", "exec", self._space(name), sys.executable, "-c", _CLIENT]
        done = subprocess.run(command, input=json.dumps(targets), capture_output=True, text=True, check=True)
        return {(address, port) for address, port in json.loads(done.stdout)}

    def close(self) -> None:
        """Leave nothing behind."""
        for server in self._servers:
            server.kill()
            server.communicate()
        for space in (self._switch, *(self._space(name) for name in self._addresses)):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _join(self, number: int, name: str, address: str) -> None:
        space, port = self._space(name), f"port{number}"
        self._ip("netns", "add", space)
        self._ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("-n", space, "link", "set", "lo", "up")
        self._ip("-n", space, "addr", "add", f"{address}/32", "dev", "eth0")
        self._ip("-n", space, "link", "set", "eth0", "up")
        self._ip("-n", space, "route", "add", "169.254.1.1", "dev", "eth0")
        self._ip("-n", space, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        self._ip("-n", self._switch, "addr", "add", "169.254.1.1/32", "dev", port)
        self._ip("-n", self._switch, "link", "set", port, "up")
        self._ip("-n", self._switch, "route", "add", f"{address}/32", "dev", port)

    def _in(self, space: str, *command: str) -> None:
        self._ip("netns", "exec", space, *command)

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)


@contextmanager
def pod_network(addresses: Mapping[str, str], ports: Sequence[int]) -> Iterator[PodNetwork]:
    """A network that is gone when the block ends."""
    network = PodNetwork(addresses)
    try:
        network.open(ports)
        yield network
    finally:
        network.close()


def can_join() -> bool:
    """Whether this machine lets us make network namespaces."""
    probe = f"g{secrets.token_hex(3)}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return made
