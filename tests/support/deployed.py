"""Containers of rendered manifests as processes on this machine: their commands, their environments, their mounts.

Each runs in a mount namespace in which its volumes lie where its manifest says and everything else is read-only, as
`readOnlyRootFilesystem` has it. All of them share the machine's loopback.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.chart_tools import ROOT
from workers.embedded.process import wait_for

Object = dict[str, Any]
_BIN = Path(sys.executable).parent


@dataclass
class Container:
    """One container of a pod, runnable here. `volumes` are the folders that stand for the pod's volumes."""

    manifest: Object
    pod: Object
    secrets: Mapping[tuple[str, str], str]
    volumes: Mapping[str, Path]
    log: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """What the container runs, its variables filled in."""
        words = [*self.manifest["command"], *self.manifest.get("args", [])]
        return [re.sub(r"\$\((\w+)\)", lambda found: self.environment[found[1]], word) for word in words]

    @property
    def environment(self) -> dict[str, str]:
        """The manifest's variables and nothing of ours, but for PATH, which the image sets."""
        given = {each["name"]: self._value(each) for each in self.manifest["env"]}
        return {"PATH": f"{_BIN}:/usr/sbin:/usr/bin:/sbin:/bin", **given, **self.extra}

    def start(self) -> "Container":
        """Run it; what it says goes to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", self._mounts(), "sh", *self.command],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self

    def run(self, seconds: float = 120) -> int:
        """Run it to its end; the exit status."""
        self.start()
        assert self.process is not None
        return self.process.wait(seconds)

    def probe(self, kind: str) -> bool:
        """What the kubelet would find now."""
        probe = self.manifest[kind]
        if "exec" in probe:
            return self.execute(probe["exec"]["command"]).returncode == 0
        port = {each["name"]: each["containerPort"] for each in self.manifest["ports"]}[probe["httpGet"]["port"]]
        try:
            return httpx.get(f"http://127.0.0.1:{port}{probe['httpGet']['path']}", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the container, as `kubectl exec` would."""
        assert self.process is not None
        entered = ["nsenter", "--mount", f"--target={self.process.pid}", *command]
        return subprocess.run(entered, env=self.environment, capture_output=True, check=False)

    def stop(self, number: int = signal.SIGTERM) -> float | None:
        """What the kubelet does: preStop, the signal, the grace period. The exit status; None if killed."""
        assert self.process is not None
        hook = self.manifest.get("lifecycle", {}).get("preStop")
        if hook and number == signal.SIGTERM:
            assert self.execute(hook["exec"]["command"]).returncode == 0
        self.process.send_signal(number)
        if not wait_for(lambda: self._ended(), self.pod["spec"].get("terminationGracePeriodSeconds", 30)):
            self.process.kill()
            self.process.wait()
            return None
        return float(self.process.wait())

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _value(self, variable: Object) -> str:
        source = variable.get("valueFrom")
        if source is None:
            return str(variable["value"])
        if "secretKeyRef" in source:
            return self.secrets[(source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])]
        assert source["fieldRef"]["fieldPath"] == "metadata.name"
        return f"{self.pod['metadata']['labels']['app.kubernetes.io/component']}-0"

    def _mounts(self) -> str:
        mounts = sorted(self.manifest["volumeMounts"], key=lambda each: str(each["mountPath"]) == "/tmp")
        lines = ["set -e", f"mount --bind {shlex.quote(str(ROOT))} /mnt", "mount -t tmpfs none /var/lib"]
        for each in mounts:
            target, source = shlex.quote(each["mountPath"]), shlex.quote(str(self.volumes[each["name"]]))
            if each["mountPath"].startswith("/var/lib/"):
                lines.append(f"mkdir -p {target}")
            lines.append(f"mount --bind {source} {target}")
            if each.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {target}")
        if any(ROOT.is_relative_to(path) for path in ("/var/lib", *(each["mountPath"] for each in mounts))):
            # The project itself lies where a volume now is: it has to be seen through it, as an image's files are.
            project = shlex.quote(str(ROOT))
            lines += [f"mkdir -p {project}", f"mount --bind /mnt {project}", f"mount -o remount,bind,ro {project}"]
        # `exec` keeps the number of the process: signals reach the container's own.
        return "\n".join([*lines, "mount -o remount,bind,ro /", 'exec "$@"'])


def can_isolate() -> bool:
    """Whether this machine lets us make mount namespaces."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0
