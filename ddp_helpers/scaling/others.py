"""What others measured and published, row by row, beside what the cost model says of it.

    print(table())                     # every row, with its error, misses included

Of each series the speed of one GPU is taken as published; nothing else is fitted. Links are rated
values, 80 % of which an all-reduce is taken to reach. What a library sends, and when, is read in
its source or its documentation, and stands in `assumed` where it is not.

Left out: the figures of Li et al. (VLDB 2020), which have no numbers to read (the table of DDP's
authors is here in their place); in DLPerf the frameworks whose way of sending is not documented
(OneFlow, PaddlePaddle, TensorFlow 2), and gluon-cv's ResNet in MXNet, which on one server already
is 3.5 times as fast on eight GPUs as on one.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from ddp_helpers.scaling.rated import (
    LIBRARIES,
    NOISE_SOURCE,
    REACHED,
    Sends,
    described,
    rated,
)
from ddp_helpers.scaling.records import Machine, Numbers, Range, Setup, Work
from ddp_helpers.scaling.step_time import predict

DLPERF = "https://github.com/Oneflow-Inc/DLPerf/blob/c89430b/"
NGC = f"{DLPERF}NVIDIADeepLearningExamples/"
NVIDIA = "https://github.com/NVIDIA/DeepLearningExamples"
DDP_README = "https://github.com/pytorch/pytorch/blob/bf69c14/benchmarks/distributed/ddp/README.md"
TF_P100 = "https://github.com/tensorflow/tensorflow/blob/5984ffe/tensorflow/docs_src/performance/"
TF_P100 += "benchmarks.md"
HOROVOD = "https://github.com/horovod/horovod/blob/27743d0/docs/benchmarks.rst"
HOROVOD_OLD = "https://github.com/danjust/horovod"  # the README of its first year
ASSUMED = (
    NOISE_SOURCE,
    f"rated links: an all-reduce reaches {REACHED:.0%}",
    "one ring through all ranks, as NCCL's; two thirds of the computing is backward",
    "the range: 30 % of a bandwidth, 50 % of a latency, 10 % of the step; at its bad end the "
    "backward hides nothing",
)
GOYAL = "P. Goyal et al., Accurate, large minibatch SGD, arXiv:1706.02677, abstract"


@dataclass(frozen=True)
class Model:
    """A published model, as an all-reduce sees it."""

    name: str
    parameters: int
    tensors: int
    late: int = 0
    """Values of the embedding, whose gradient is the last to be ready."""


RESNET50 = Model("ResNet-50", 25_557_032, 161)
RESNET101 = Model("ResNet-101", 44_549_160, 314)
RESNEXT50 = Model("ResNeXt-50 32x4d", 25_028_904, 161)
RESNEXT101 = Model("ResNeXt-101 32x8d", 88_791_336, 314)
VGG16 = Model("VGG-16", 138_357_544, 32)
ALEXNET = Model("AlexNet", 61_100_840, 16)
INCEPTION3 = Model("Inception V3", 23_834_568, 284)
BERT = Model("BERT base", 110_106_428, 206, late=30_522 * 768)


DDP, APEX = LIBRARIES["ddp"], LIBRARIES["apex"]
ONE_32 = Sends("apex: one bucket (message_size=250000000), 32 bits", 1e4)
ONE_16 = Sends("apex: one bucket (message_size=250000000), 16 bits (AMP level O2)", 1e4, "float16")
HOROVOD_32 = Sends("Horovod: fusions of 64 MiB, 32 bits, a cycle of 5 ms", 64, cycle=5e-3)
HOROVOD_16 = dataclasses.replace(HOROVOD_32, words=HOROVOD_32.words.replace("32 b", "16 b"))
HOROVOD_16 = dataclasses.replace(HOROVOD_16, dtype="float16")
XLA = "; nothing overlaps, as XLA joins the backward into few programs (assumed)"
XLA_32 = dataclasses.replace(HOROVOD_32, words=HOROVOD_32.words + XLA, overlap=False)
XLA_16 = dataclasses.replace(HOROVOD_16, words=HOROVOD_16.words + XLA, overlap=False)
QUICK_32 = Sends("Horovod: fusions of 64 MiB, 32 bits, a cycle of 0.1 ms", 64, cycle=1e-4)
QUICK_16 = dataclasses.replace(QUICK_32, words=QUICK_32.words.replace("32 b", "16 b"))
QUICK_16 = dataclasses.replace(QUICK_16, dtype="float16")
NCCL = Sends("NCCL, variable_update=replicated: taken as DDP's buckets (assumed)")


@dataclass(frozen=True)
class Servers:
    """Equal servers: rated bytes a second of a rank's links to its peers, and of a server's cards.

    `inside` tells, for so many ranks, what a ring through them has: where not all GPUs are joined
    by the same number of links, two have less than eight.
    """

    name: str
    per_server: int
    inside: dict[int, float]
    cards: float | None
    words: str

    def machine(self, ranks: int, cycle: float) -> Machine:
        """As `predict` takes it, with ranges for what nobody measured."""
        local = min(ranks, self.per_server)
        inside = self.inside[min(n for n in self.inside if n >= local)]
        link = rated(f"{self.name}, inside", 1e-5, inside)
        network = rated("between servers", 2e-5, self.cards) if self.cards else None
        machine = described(self.name, link, network, self.per_server if network else None)
        return dataclasses.replace(machine, step_overhead=cycle)


CUBE = {2: 25e9, 4: 100e9, 8: 150e9}  # V100 in a hybrid cube mesh: 1, 4, 6 links of 25 GB/s
DLPERF_V100 = Servers(
    "servers of 8 V100, one InfiniBand EDR card each",
    *(8, CUBE, 12.5e9),
    "NVLink 2 as in the report's nvidia-smi topo -m; one card of 100 Gbit/s a server",
)
DDP_V100 = Servers(
    "DGX-1 with 8 V100, four InfiniBand EDR cards each",
    *(8, CUBE, 50e9),
    "NVLink 2 as in the README's nvidia-smi topo -m; 4 cards of 100 Gbit/s a server",
)
DGX1_P100 = Servers(
    "DGX-1 with 8 P100",
    *(8, {2: 20e9, 4: 60e9, 8: 80e9}, None),
    "NVLink 1: 1, 3 and 4 links of 20 GB/s for 2, 4 and 8 GPUs",
)
ROCE_P100 = Servers(
    "servers of 4 Pascal GPUs, RoCE of 25 Gbit/s",
    *(4, {4: 16e9}, 3.125e9),
    "PCIe 3.0 x16 inside a server (assumed); one GPU as fast as in TensorFlow's table of a DGX-1 "
    "with P100, with ResNet-101 a sixteenth of Horovod's own example on 16 (both assumed)",
)
BIG_BASIN = Servers(
    "servers of 8 P100, 50 Gbit/s",
    *(8, {8: 80e9}, 6.25e9),
    "NVLink 1 inside, 50 Gbit/s between servers (assumed)",
)


@dataclass(frozen=True)
class Series:
    """One published column: samples a second of all GPUs, by their number."""

    name: str
    source: str
    servers: Servers
    model: Model
    batch: int
    sends: Sends
    speeds: dict[int, float]
    """The first is where the model starts; the others are predicted. With `one_gpu` they may be
    shares: so many times one GPU of the first."""
    one_gpu: float | None = None
    """Samples a second of one GPU, where the source has only efficiencies. None: speeds[1]."""

    @property
    def is_share(self) -> bool:
        """Its numbers are no samples a second, but so many times one GPU of the first."""
        return 1 not in self.speeds

    def rows(self) -> list[Row]:
        """Each number of GPUs but the first, which is given."""
        (start, given), *rest = self.speeds.items()
        scale = given / self._predicted(start).value if self.one_gpu else 1.0
        return [
            Row(self, n, real, Range(*(scale * part for part in vars(self._predicted(n)).values())))
            for n, real in rest
        ]

    def _predicted(self, ranks: int) -> Range:
        work = Work(
            self.model.name,
            self.model.parameters,
            1 / (self.one_gpu or self.speeds[1]),
            tensors=self.model.tensors,
            late_parameters=self.model.late,
        )
        setup = Setup(
            ranks,
            self.batch,
            bucket_cap_mb=self.sends.cap_mb,
            gradient_dtype=self.sends.dtype,
            overlap=self.sends.overlap,
            algorithm="ring",
            hierarchical=False,
        )
        machine = self.servers.machine(ranks, self.sends.cycle)
        return predict(machine, work, setup).samples_per_second


@dataclass(frozen=True)
class Row:
    """One published number, and the model's."""

    series: Series
    ranks: int
    published: float
    predicted: Range

    @property
    def off(self) -> float:
        """Share by which the prediction is too high; below 0 it is too low."""
        return float(self.predicted.value) / self.published - 1

    @property
    def inside(self) -> bool:
        """Whether the published number lies in the predicted range."""
        return bool(self.predicted.low <= self.published <= self.predicted.high)


def _dlperf(
    name: str, page: str, model: Model, batch: int, sends: Sends, speeds: dict[int, float]
) -> Series:
    return Series(f"DLPerf, {name}", page, DLPERF_V100, model, batch, sends, speeds)


def _of_ddp(model: Model, seconds: dict[int, float]) -> Series:
    speeds = {n: n * 32 / each for n, each in seconds.items()}
    return Series(f"DDP's authors, {model.name}", DDP_README, DDP_V100, model, 32, DDP, speeds)


def _of_tensorflow(model: Model, batch: int, speeds: dict[int, float]) -> Series:
    name = f"TensorFlow, {model.name}, {batch} a GPU"
    return Series(name, TF_P100, DGX1_P100, model, batch, NCCL, speeds)


def _of_horovod(model: Model, source: str, one_gpu: float, shares: dict[int, float]) -> Series:
    speeds = {1: one_gpu} | {n: n * one_gpu * share for n, share in shares.items()}
    return Series(
        f"Horovod, {model.name}", source, ROCE_P100, model, 64, HOROVOD_32, speeds, one_gpu
    )


_PT_RESNET, _PT_BERT = f"{NGC}PyTorch/resnet50v1.5/README.md", f"{NGC}PyTorch/BERT/README.md"
_TF_RESNET = f"{NGC}TensorFlow/Classification/ConvNets/resnet50v1.5/README.md"
_TF_BERT = f"{NGC}TensorFlow/LanguageModeling/BERT/README.md"
_MX_RESNET = f"{NGC}MxNet/Classification/RN50v1.5/README.md"
_MX_BERT, _TORCH = f"{DLPERF}MxNet/BERT/README.md", f"{DLPERF}PyTorch/resnet50v1.5/README.md"

SERIES = (
    _dlperf(
        "NVIDIA's PyTorch, ResNet-50, float32",
        *(_PT_RESNET, RESNET50, 128, APEX),
        {1: 367.29, 4: 1449.48, 8: 2887.65, 16: 5716.79, 32: 10917.09},
    ),
    _dlperf(
        "NVIDIA's PyTorch, ResNet-50, AMP",
        *(_PT_RESNET, RESNET50, 256, APEX),
        {1: 802.9, 4: 3137.44, 8: 6154.66, 16: 11991.94, 32: 22551.16},
    ),
    _dlperf(
        "PyTorch, ResNet-50, float32, DataLoader",
        *(_TORCH, RESNET50, 128, DDP),
        {1: 348.62, 4: 1226.38, 8: 2632.93, 16: 5115.4, 32: 10021.29},
    ),
    _dlperf(
        "PyTorch, ResNet-50, float32, DALI",
        *(_TORCH, RESNET50, 128, DDP),
        {1: 350.66, 4: 1306.49, 8: 2707.42, 16: 5193.09, 32: 10032.72},
    ),
    _dlperf(
        "NVIDIA's PyTorch, BERT, float32, 32 a GPU",
        *(_PT_BERT, BERT, 32, ONE_32),
        {1: 119.6, 4: 457.72, 8: 921.32, 16: 1499.4, 32: 2885.81},
    ),
    _dlperf(
        "NVIDIA's PyTorch, BERT, float32, 48 a GPU",
        *(_PT_BERT, BERT, 48, ONE_32),
        {1: 121.94, 4: 464.66, 8: 928.01, 16: 1584.32, 32: 3039.3},
    ),
    _dlperf(
        "NVIDIA's PyTorch, BERT, AMP, 64 a GPU",
        *(_PT_BERT, BERT, 64, ONE_16),
        {1: 444.51, 4: 1671.66, 8: 3251.7, 16: 4936.92, 32: 9331.72},
    ),
    _dlperf(
        "NVIDIA's PyTorch, BERT, AMP, 96 a GPU",
        *(_PT_BERT, BERT, 96, ONE_16),
        {1: 462.35, 4: 1727.93, 8: 3287.12, 16: 5426.07, 32: 10349.12},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, ResNet-50, float32",
        *(_TF_RESNET, RESNET50, 128, HOROVOD_32),
        {1: 362.44, 4: 1391.28, 8: 2721.98, 16: 5099.42, 32: 9514.64},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, ResNet-50, AMP",
        *(_TF_RESNET, RESNET50, 224, HOROVOD_32),
        {1: 945.18, 4: 3546.02, 8: 6903.42, 16: 12021.09, 32: 24734.22},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, ResNet-50, AMP, XLA",
        *(_TF_RESNET, RESNET50, 224, XLA_32),
        {1: 1198.55, 4: 4360.83, 8: 8588.45, 16: 14931.03, 32: 29171.69},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, BERT, float32, 32 a GPU",
        *(_TF_BERT, BERT, 32, HOROVOD_32),
        {1: 107.33, 4: 397.71, 8: 790.03, 16: 1404.04, 32: 2727.9},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, BERT, float32, 48 a GPU",
        *(_TF_BERT, BERT, 48, HOROVOD_32),
        {1: 112.76, 4: 430.43, 8: 855.45, 16: 1576.88, 32: 3089.74},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, BERT, AMP, 64 a GPU",
        *(_TF_BERT, BERT, 64, HOROVOD_16),
        {1: 183.25, 4: 721.56, 8: 1452.59, 16: 2653.74, 32: 5189.07},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, BERT, AMP, XLA, 64 a GPU",
        *(_TF_BERT, BERT, 64, XLA_16),
        {1: 422.53, 4: 1552.11, 8: 3112.73, 16: 5050.86, 32: 9409.2},
    ),
    _dlperf(
        "NVIDIA's TensorFlow, BERT, AMP, XLA, 96 a GPU",
        *(_TF_BERT, BERT, 96, XLA_16),
        {1: 468.1, 4: 1766.06, 8: 3559.8, 16: 5960.14, 32: 11650.0},
    ),
    _dlperf(
        "NVIDIA's MXNet, ResNet-50, float32",
        *(_MX_RESNET, RESNET50, 128, QUICK_32),
        {1: 392.24, 2: 764.6, 4: 1518.04, 8: 3006.98, 16: 5758.49, 32: 11331.93},
    ),
    _dlperf(
        "NVIDIA's MXNet, ResNet-50, AMP",
        *(_MX_RESNET, RESNET50, 256, QUICK_32),
        {1: 1281.83, 4: 4811.72, 8: 9241.68, 16: 13348.68, 32: 27558.28},
    ),
    _dlperf(
        "NVIDIA's MXNet, ResNet-50, float16",
        *(_MX_RESNET, RESNET50, 256, QUICK_16),
        {1: 1393.87, 4: 5158.71, 8: 9621.31, 16: 16219.03, 32: 30713.68},
    ),
    _dlperf(
        "MXNet, BERT, float32, 32 a GPU",
        *(_MX_BERT, BERT, 32, HOROVOD_32),
        {1: 150.11, 2: 270.28, 4: 538.5, 8: 1058.6, 16: 1845.65, 32: 3671.45},
    ),
    _dlperf(
        "MXNet, BERT, float32, 48 a GPU",
        *(_MX_BERT, BERT, 48, HOROVOD_32),
        {1: 153.75, 2: 287.77, 4: 572.64, 8: 1127.41, 16: 2067.72, 32: 4105.29},
    ),
    _dlperf(
        "MXNet, BERT, float32, 64 a GPU",
        *(_MX_BERT, BERT, 64, HOROVOD_32),
        {1: 156.76, 2: 295.42, 4: 587.71, 8: 1153.08, 16: 2172.62, 32: 4340.89},
    ),
    _dlperf(
        "MXNet, BERT, float16, 64 a GPU",
        *(_MX_BERT, BERT, 64, HOROVOD_16),
        {1: 473.76, 2: 811.6, 4: 1623.56, 8: 3107.1, 16: 5723.26, 32: 11269.14},
    ),
    _dlperf(
        "MXNet, BERT, float16, 96 a GPU",
        *(_MX_BERT, BERT, 96, HOROVOD_16),
        {1: 516.54, 2: 925.52, 4: 1837.08, 8: 3579.0, 16: 6684.57, 32: 13376.76},
    ),
    _dlperf(
        "MXNet, BERT, float16, 128 a GPU",
        *(_MX_BERT, BERT, 128, HOROVOD_16),
        {1: 544.31, 2: 1000.15, 4: 1970.59, 8: 3825.21, 16: 7327.5, 32: 14822.31},
    ),
    # seconds of a step, the median; one GPU is the line with DDP
    _of_ddp(RESNET50, {1: 0.100, 2: 0.103, 4: 0.103, 8: 0.104, 16: 0.104}),
    _of_ddp(RESNET101, {1: 0.171, 2: 0.176, 4: 0.176, 8: 0.179, 16: 0.179}),
    _of_ddp(RESNEXT50, {1: 0.147, 2: 0.153, 4: 0.153, 8: 0.157, 16: 0.157}),
    _of_ddp(RESNEXT101, {1: 0.425, 2: 0.438, 4: 0.439, 8: 0.447, 16: 0.450}),
    # synthetic data; of its models those that it trains through NCCL
    _of_tensorflow(VGG16, 64, {1: 154, 2: 295, 4: 584, 8: 1081}),
    _of_tensorflow(VGG16, 32, {1: 144, 2: 281, 4: 549, 8: 820}),
    _of_tensorflow(ALEXNET, 512, {1: 2987, 2: 5658, 4: 10509, 8: 17822}),
    # efficiencies only; one GPU by TensorFlow's table, ResNet-101 by Horovod's own example on 16
    _of_horovod(VGG16, HOROVOD, 154, {512: 0.68}),
    _of_horovod(VGG16, HOROVOD_OLD, 154, {128: 0.79}),
    _of_horovod(RESNET101, HOROVOD, 1656.82 / 16, {512: 0.90}),
    _of_horovod(RESNET101, HOROVOD_OLD, 1656.82 / 16, {128: 0.90}),
    _of_horovod(INCEPTION3, HOROVOD, 142, {512: 0.90}),
    _of_horovod(INCEPTION3, HOROVOD_OLD, 142, {128: 0.90}),
    Series(
        "Goyal et al., ResNet-50",
        *(GOYAL, BIG_BASIN, RESNET50, 32, DDP),
        {8: 8.0, 256: 0.90 * 256},  # as shares of eight GPUs
        one_gpu=195,
    ),
)


def rows() -> list[Row]:
    """All rows of all series."""
    return [row for series in SERIES for row in series.rows()]


def summary(found: list[Row]) -> str:
    """The errors of all rows in a sentence."""
    off = [abs(row.off) for row in found]
    inside = sum(row.inside for row in found)
    return (
        f"{len(found)} rows: median error {statistics.median(off):.1%}, largest {max(off):.0%}; "
        f"{inside} ({inside / len(found):.0%}) within the predicted range"
    )


def table() -> str:
    """Every row with its error, under its source and what was assumed."""
    lines = [summary(rows()), "assumed of all:", *(f"  {text}" for text in ASSUMED)]
    for series in SERIES:
        lines += ["", f"{series.name}, {series.batch} samples a GPU"]
        lines += [f"  source: {series.source}", f"  sends: {series.sends.words}"]
        lines += [f"  links: {series.servers.words}"]
        for row in series.rows():
            low, high = row.predicted.low, row.predicted.high
            unit = " of the first" if series.is_share else "/s"
            lines.append(
                f"  {row.ranks:>5} GPUs {number(row.published):>9}{unit}, predicted "
                f"{number(row.predicted.value):>9} ({number(low)} to {number(high)})"
                f"{row.off:>+7.0%}{'' if row.inside else '  MISSED'}"
            )
    return "\n".join(lines)


def number(value: Numbers) -> str:
    """A speed in a table."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
