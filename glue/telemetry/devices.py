"""Memory of the GPUs that a process can see, through the driver's own library. Never initialises CUDA."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class DeviceCollector(Collector):
    """`glue_gpu_memory_{used,total}_bytes`, read at each scrape; nothing where there is no GPU or no driver.

    `nvml` gives the driver's library, as the package nvidia-ml-py offers it, or raises.
    """

    def __init__(self, nvml: Callable[[], Any] | None = None) -> None:
        self._nvml = nvml or _load_nvml

    def collect(self) -> Iterable[Metric]:
        """Two gauges with a label `gpu`, the device's number."""
        used = GaugeMetricFamily("glue_gpu_memory_used_bytes", "Device memory in use", labels=["gpu"])
        total = GaugeMetricFamily("glue_gpu_memory_total_bytes", "Device memory", labels=["gpu"])
        for number, memory in enumerate(self._memories()):
            used.add_metric([str(number)], float(memory.used))
            total.add_metric([str(number)], float(memory.total))
        return [used, total]

    def describe(self) -> Iterable[Metric]:
        """Names only: registering asks no device."""
        return []

    def _memories(self) -> Iterator[Any]:
        # No library, no driver, a device that fell off the bus: a scrape must not fail for any of them.
        with suppress(Exception):
            nvml = self._nvml()
            for number in range(nvml.nvmlDeviceGetCount()):
                yield nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(number))


def _load_nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml
