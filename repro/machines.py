"""How fast machines are, as far as an estimate needs it: a small table and the efficiency assumed.

Peaks are the makers' figures for dense operations. What is reached of them is an assumption, so times are
rough: good for choosing a profile and a time limit, not for comparing machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from repro.hardware import Hardware

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One type. half, tensorfloat, single: TFLOP/s in 16 bits, in TF32 and in float32; bandwidth: TB/s."""

    memory_gb: float
    half: float
    tensorfloat: float
    single: float
    bandwidth: float


# By the beginning of what sites call them, the longest that fits; memory in GiB, as SLURM counts.
GPUS = {
    "v100": Gpu(16, 125, 15.7, 15.7, 0.9),
    "v100_32gb": Gpu(32, 125, 15.7, 15.7, 0.9),
    "a100": Gpu(40, 312, 156, 19.5, 1.555),
    "a100_80gb": Gpu(80, 312, 156, 19.5, 2.0),
    "h100": Gpu(80, 989, 495, 67, 3.35),
    "h200": Gpu(139, 989, 495, 67, 4.8),
}
OLDEST = "v100"  # what an unnamed GPU is taken for
# Of the peak: 400 of an H200's 989 TFLOP/s, and 40 of a core's 80 GFLOP/s in training small transformers.
GPU_EFFICIENCY, CPU_EFFICIENCY = 0.4, 0.5
# One core with 256-bit vectors, two multiply-adds a cycle, 2.5 GHz: in float32.
CORE_TFLOPS = 0.08
# Weights that do not fit the GPU come over the bus at each pass: TB/s.
BUS = 0.025
DISK = 1e9  # bytes a second at which weights are read, once
RUNTIME_GB = 2.0  # context, kernels and workspaces, on each GPU


@dataclass(frozen=True)
class Machine:
    """What one job has. memory_gb: of one GPU, or of the host (None: not said); says: in words."""

    gpus: int
    cores: int
    memory_gb: float | None
    tflops: float
    bandwidth: float | None
    says: str

    @property
    def on_gpu(self) -> bool:
        """Whether the model lies on GPUs."""
        return self.gpus > 0


def gpu_of(hardware: Hardware) -> tuple[str, Gpu] | None:
    """The type that a profile names and its figures; None if it is not in the table."""
    name = (hardware.gpu_type or "").lower()
    fitting = [known for known in GPUS if name.startswith(known)]
    return (max(fitting, key=len), GPUS[max(fitting, key=len)]) if fitting else None


def machine(hardware: Hardware, cores_here: int, dtype: str = "float32") -> Machine:
    """What a profile's jobs run on. cores_here: CPUs of this machine, for profiles that do not submit.

    With several GPUs a model is spread over them only with a device map, and layers then work one after
    the other: memory adds up, speed does not.
    """
    here = hardware.executor != "slurm"
    cores = hardware.threads or (cores_here if here else hardware.cpus)
    if hardware.device != "cuda":
        rate = CORE_TFLOPS * CPU_EFFICIENCY * cores * (0.5 if dtype == "float64" else 1)
        says = (f"{cores} CPU core{'s' if cores > 1 else ''} at {CPU_EFFICIENCY:.0%} of"
                f" {1000 * CORE_TFLOPS:.0f} GFLOP/s each")  # fmt: skip
        return Machine(0, cores, hardware.memory_gb, rate, None, says)
    named = gpu_of(hardware)
    name, gpu = named or (OLDEST, GPUS[OLDEST])
    peak = gpu.single / 2
    if dtype != "float64":
        peak = gpu.half if dtype in ("float16", "bfloat16") else gpu.single
        peak = gpu.tensorfloat if dtype == "float32" and hardware.matmul == "tensorfloat32" else peak
    memory = hardware.gpu_memory_gb or (gpu.memory_gb if named else None)
    count = max(hardware.gpus, 1)
    which = name.upper() if named else f"GPU of a type that is not said, taken for a {name.upper()}"
    says = f"{count} {which} at {GPU_EFFICIENCY:.0%} of {peak:g} TFLOP/s"
    return Machine(count, cores, memory, peak * GPU_EFFICIENCY, gpu.bandwidth, says)
