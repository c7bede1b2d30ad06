"""The values files and toggles that the chart's tests go through."""

from tests.support.chart_tools import VALUES

_GPU = ("--set", "workers.gpu.classes={gpu}", "--set", "workers.gpu.device=cuda", "--set", "workers.gpu.gpus=1")
GPU = (*_GPU, "--set", "workers.gpu.image=workerGpu", "--set-string", "workers.gpu.deviceMemoryBytes=23622320128")

FILES: dict[str, tuple[str, ...]] = {
    "defaults": (),
    **{file.stem: ("-f", str(file)) for file in sorted(VALUES.glob("*.yaml"))},
}

TOGGLES: dict[str, tuple[str, ...]] = {
    "development": ("--set", "development.enabled=true"),
    "no redis": ("--set", "redis.enabled=false"),
    "init migrations": ("--set", "migrations.mode=init"),
    "s3": (
        "--set",
        "artifacts.kind=s3",
        "--set",
        "artifacts.s3.url=s3://b/p",
        "--set",
        "artifacts.s3.existingSecret=s",
    ),
    "existing claim": ("--set", "artifacts.existingClaim=mine"),
    "autoscaling": ("--set", "api.autoscaling.enabled=true"),
    "ingress": ("--set", "ingress.enabled=true"),
    "sandbox": ("--set", "sandbox.enabled=true"),
    "no policies": ("--set", "networkPolicies.enabled=false"),
    "no monitors": ("--set", "observability.monitors=never"),
    "monitors": ("--set", "observability.monitors=always"),
    "traces": ("--set", "observability.otlpEndpoint=http://collector:4318"),
    "text logs": ("--set", "observability.logFormat=text"),
    "no dashboard": ("--set", "observability.dashboard=false"),
    "no account": ("--set", "serviceAccount.create=false"),
    "gpu fixed": GPU,
    "gpu deployment": (*GPU, "--set", "workers.gpu.scaling=deployment"),
    "gpu job": (*GPU, "--set", "workers.gpu.scaling=job"),
    "hub secret": ("--set", "hub.existingSecret=vault", "--set", "hub.endpoint=https://mirror.example.org"),
    "no hub": ("--set", "workers.hub.enabled=false"),
}

CASES = {**FILES, **TOGGLES}
