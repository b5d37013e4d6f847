"""Records of the cost model: a link, a machine, the work of one rank, a setup, a prediction."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddp_helpers.arguments import check_least

Numbers = float | np.ndarray
ALGORITHMS = ("ring", "tree", "double_tree", "halving_doubling", "nccl", "best")
GRADIENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Range:
    """A value with the ends of what it may be; floats, or arrays of one shape."""

    value: Numbers
    low: Numbers
    high: Numbers

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class Link:
    """What carries messages between two ranks: a message of m bytes takes latency + m/bandwidth.

    This is Hockney's model (R. Hockney, "The communication challenge for MPP", Parallel Computing
    20, 1994), where latency is called alpha and 1/bandwidth beta.
    """

    name: str
    latency: float
    """Seconds of a message of no size."""
    bandwidth: float
    """Bytes a second."""
    latency_error: float = 0.0
    """Share of the latency by which it may be wrong, up or down."""
    bandwidth_error: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        check_numbers(self.name, latency=self.latency)
        check_numbers(self.name, above=True, bandwidth=self.bandwidth)
        check_shares(
            self.name, latency_error=self.latency_error, bandwidth_error=self.bandwidth_error
        )


@dataclass(frozen=True)
class Machine:
    """What all ranks run on: links, and what ranks of one node share."""

    name: str
    link: Link
    """Between ranks of one node."""
    network: Link | None = None
    """Between nodes; its bandwidth is that of a whole node. None: there is one node only."""
    ranks_per_node: int | None = None
    """None: all ranks are in one node."""
    cores: int | None = None
    """CPU cores that the ranks of a node share; None where each rank has a GPU of its own."""
    contention: float = 1.0
    """How much slower a rank computes when each core has a rank, against a rank alone."""
    background: float = 0.0
    """Other programs that want a core, on average, when the machine was measured."""
    communication_cpu: float = 0.0
    """Seconds of one core that each rank needs for a second of all-reduce (0 on GPUs)."""
    step_overhead: float = 0.0
    """Seconds that DDP adds to each step whatever the model."""
    byte_overhead: float = 0.0
    """Seconds that DDP adds for each byte of gradients: it copies them to buckets and back."""
    noise: float = 0.0
    """Standard deviation of a rank's compute time, as a share of it: what makes stragglers."""
    price_per_hour: float = 0.0
    """Of one rank's device, in any currency."""
    model_error: float = 0.0
    """Share by which this model itself may be wrong, as found where it was tested."""
    overlap_error: float = 0.0
    """Share of what the backward should hide that it may not hide: 1 where nobody measured it."""
    notes: tuple[str, ...] = ()
    """How the numbers came about: measured where, or assumed why."""

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "cores"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1 or value != int(value)):
                raise ValueError(f"{name}={value!r}: expected a whole number, at least 1, or None")
        if not math.isfinite(self.contention) or self.contention < 1:
            raise ValueError(
                f"contention={self.contention!r}: expected at least 1 (1 means that ranks do not "
                "slow each other down)"
            )
        if self.ranks_per_node is not None and self.network is None:
            raise ValueError(
                f"ranks_per_node={self.ranks_per_node} without a network: say what joins the "
                "nodes, network=Link(...), or leave ranks_per_node out for one node"
            )
        names = "background communication_cpu step_overhead byte_overhead noise"
        names += " price_per_hour model_error"
        check_numbers(self.name, **{name: getattr(self, name) for name in names.split()})
        if not 0 <= self.overlap_error <= 1:
            raise ValueError(f"overlap_error={self.overlap_error!r}: expected a share from 0 to 1")

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Machine:
        """Read a profile that `save` wrote.

        Raises:
            ValueError: the file is not such a profile.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            links = {key: Link(**values[key]) for key in ("link", "network") if values.get(key)}
            notes = tuple(values.get("notes", ()))
            return cls(**(values | links | {"notes": notes}))
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is no machine profile ({error}): make one with "
                "python -m ddp_helpers plan --measure --save PATH"
            ) from None


@dataclass(frozen=True)
class Work:
    """What one rank does for a batch, measured or given for a rank alone.

    forward + backward of b samples take seconds_per_batch + b * seconds_per_sample.
    """

    name: str
    parameters: int
    """Values that training changes; each has a gradient to average."""
    seconds_per_sample: float
    """Forward and backward together."""
    seconds_per_batch: float = 0.0
    """What a batch costs whatever its size."""
    backward_share: float = 2 / 3
    """Part of forward + backward that is backward: two products of matrices for the forward's
    one, so two thirds where nothing was measured."""
    optimizer_seconds: float = 0.0
    """Of one optimizer.step() with zero_grad()."""
    tensors: int | None = None
    """Number of parameter tensors: no more buckets than that. None: as many as needed."""
    late_parameters: int = 0
    """Of `parameters`, those whose gradient is ready only when the backward ends, as that of an
    embedding: it is used first, so it is the last, and too large for a bucket with others."""
    data_seconds_per_sample: float = 0.0
    """Of loading and preparing one sample in one process."""
    data_workers: int = 0
    """Loader processes of each rank; 0: the rank loads its own samples, and computes after."""
    error: float = 0.0
    """Share by which the times may be wrong."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_least("parameters", self.parameters, 1)
        if self.tensors is not None and not self.tensors >= 1:
            raise ValueError(f"tensors={self.tensors!r}: expected at least 1, or None")
        if not 0 <= self.late_parameters < self.parameters:
            raise ValueError(
                f"late_parameters={self.late_parameters!r}: expected at least 0, and fewer than "
                f"the {self.parameters} parameters"
            )
        if not 0 < self.backward_share < 1:
            raise ValueError(f"backward_share={self.backward_share!r}: expected between 0 and 1")
        names = "seconds_per_sample seconds_per_batch optimizer_seconds data_seconds_per_sample"
        names += " data_workers"
        check_numbers(self.name, **{name: getattr(self, name) for name in names.split()})
        check_shares(self.name, error=self.error)
        if self.seconds_per_sample + self.seconds_per_batch <= 0:
            raise ValueError(
                f"{self.name}: seconds_per_sample and seconds_per_batch are both 0, but computing "
                "takes time: give one of them, or measure the model with measure_work()"
            )


@dataclass(frozen=True)
class Setup:
    """How a run is set up. Each number may be an array: arrays broadcast as numpy's do."""

    ranks: int | np.ndarray = 1
    batch_size_per_rank: int | np.ndarray = 32
    """Of one forward and backward; accumulation multiplies it."""
    bucket_cap_mb: float | np.ndarray | None = None
    """DDP's: None is torch's default, a first bucket of 1 MiB and then 25 MiB each. A number
    holds for the first bucket, too."""
    accumulation_steps: int | np.ndarray = 1
    """Forward and backward this often before gradients are averaged (no_sync before the last)."""
    gradient_dtype: str = "float32"
    """What travels; "bfloat16" is what torch's bf16_compress_hook sends."""
    compression: float | np.ndarray = 1.0
    """Further factor by which a hook such as PowerSGD makes messages smaller."""
    algorithm: str = "ring"
    """"ring" (gloo's, and NCCL's for big messages), "tree", "double_tree" (NCCL's for small ones),
    "halving_doubling"; "nccl": the better of NCCL's two; "best": of all."""
    hierarchical: bool = True
    """With several nodes: reduce inside each node first. False: one ring through all ranks, which
    is what NCCL does."""
    overlap: bool = True
    """DDP sends a bucket while the backward goes on. False: all after the backward."""

    def __post_init__(self) -> None:
        whole = ("ranks", "batch_size_per_rank", "accumulation_steps")
        for name in whole:
            value = np.asarray(getattr(self, name))
            if value.dtype.kind not in "iu" or value.size == 0 or value.min() < 1:
                raise ValueError(f"{name}={_short(value)}: expected whole numbers, at least 1")
        if self.bucket_cap_mb is not None:
            check_numbers("setup", above=True, bucket_cap_mb=self.bucket_cap_mb)
        compression = np.asarray(self.compression)
        if not np.all(np.isfinite(compression) & (compression >= 1)):
            raise ValueError(f"compression={_short(compression)}: expected at least 1 (1: none)")
        if self.gradient_dtype not in GRADIENT_BYTES:
            known = ", ".join(GRADIENT_BYTES)
            raise ValueError(f"gradient_dtype={self.gradient_dtype!r}: expected one of {known}")
        if self.algorithm not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise ValueError(f"algorithm={self.algorithm!r}: expected one of {known}")


@dataclass(frozen=True)
class Prediction:
    """What a setup is predicted to do. Numbers are floats, or arrays of the setup's shape."""

    setup: Setup
    step: Range
    """Seconds from one optimizer step to the next."""
    samples_per_second: Range
    """Of all ranks together."""
    efficiency: Range
    """Samples a second of a rank, against one rank alone with the same batch: 0 to 1."""
    compute: Numbers
    """Seconds of a step in forward, backward and optimizer of one rank, contention included."""
    communication: Numbers
    """Seconds of all-reduce in a step, hidden or not."""
    exposed: Numbers
    """Seconds of a step that wait for communication: what overlap did not hide."""
    latency: Numbers
    """Part of `communication` that would stay if bandwidth were endless."""
    straggler: Numbers
    """Seconds of a step that wait for the slowest rank."""
    overhead: Numbers
    """Seconds of a step that DDP adds on each rank."""
    data: Numbers
    """Seconds of a step that wait for samples."""
    price_per_hour: Numbers
    """Of all ranks together."""

    @property
    def bound(self) -> str | np.ndarray:
        """What takes most of a step: "compute", "communication", "latency", "data" or "straggler".

        Waiting for messages counts as latency where latency is more than half of it.
        """
        late = np.asarray(self.latency) * 2 > np.asarray(self.communication)
        parts = (
            np.asarray(self.compute) + self.overhead,
            np.where(late, 0.0, self.exposed),
            np.where(late, self.exposed, 0.0),
            np.asarray(self.data),
            np.asarray(self.straggler),
        )
        names = np.array(["compute", "communication", "latency", "data", "straggler"])
        found = names[np.argmax(np.broadcast_arrays(*parts), axis=0)]
        return str(found) if found.ndim == 0 else found

    def epoch_seconds(self, samples: int) -> Range:
        """Seconds for each of `samples` samples once; the last step counts whole.

        Raises:
            ValueError: fewer than one sample.
        """
        check_least("samples", samples, 1)
        a_step = self.setup.ranks * self.setup.batch_size_per_rank * self.setup.accumulation_steps
        steps = np.ceil(samples / np.asarray(a_step))
        return self._scaled(steps)

    def cost(self, samples: int, epochs: float = 1.0) -> Range:
        """What so many epochs of `samples` samples cost, in the currency of the machine's price."""
        epoch = self.epoch_seconds(samples)
        rate = np.asarray(self.price_per_hour) * epochs / 3600
        return Range(*(plain(rate * part) for part in (epoch.value, epoch.low, epoch.high)))

    def _scaled(self, factor: Numbers) -> Range:
        parts = (self.step.value, self.step.low, self.step.high)
        return Range(*(plain(np.asarray(factor) * part) for part in parts))


def plain(values: np.ndarray) -> Numbers:
    """A float where there is one number, otherwise the array."""
    return float(values) if np.ndim(values) == 0 else values


def check_numbers(what: str, *, above: bool = False, **values: Numbers) -> None:
    """Raise ValueError unless all values are finite and at least 0 (`above`: above 0)."""
    for name, value in values.items():
        array = np.asarray(value, dtype=float)
        good = np.isfinite(array) & ((array > 0) if above else (array >= 0))
        if array.size == 0 or not good.all():
            least = "above 0" if above else "at least 0"
            raise ValueError(f"{what}: {name}={_short(array)}: expected a finite number, {least}")


def check_shares(what: str, **values: float) -> None:
    """Raise ValueError unless each value is a share of at least 0 and below 1."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(
                f"{what}: {name}={value!r}: expected at least 0 and below 1; 0.1 means that the "
                "number may be 10 % off"
            )


def _short(array: np.ndarray) -> str:
    return str(array.item()) if array.size == 1 else np.array2string(array, threshold=6)
