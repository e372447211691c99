"""The machine that measured, in words."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("torch", "scikit-learn", "skorch", "numpy")


def describe(keras_python=None):
    """Return the machine's and the packages' description as a dict of words."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    facts = {
        "CPU": _cpu_model(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "torch's instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        **versions,
    }
    if keras_python:
        facts["Keras"] = _keras_version(keras_python)
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.1f}"
    return facts


def _cpu_model():
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _keras_version(python):
    code = "from importlib.metadata import version as v; print(v('keras'), v('tensorflow-cpu'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    keras, _, tensorflow = done.stdout.strip().partition(" ")
    return f"{keras} on TensorFlow {tensorflow}" if tensorflow else "not importable"
