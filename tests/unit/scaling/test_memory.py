"""What a rank holds: formulas beside a traced model, shares, verdicts and the command."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ddp_helpers import cli
from ddp_helpers.scaling import (
    Holding,
    Link,
    Machine,
    Work,
    memory_per_rank,
    trace_model,
    transformer,
)
from ddp_helpers.scaling.memory import (
    PRECISIONS,
    STRATEGIES,
    Bytes,
    ModelMemory,
    Part,
    greedy_shares,
    largest_share,
    split,
)
from ddp_helpers.scaling.memory_trace import repeated_blocks
from ddp_helpers.scaling.memory_ways import FITS, MAY_FIT, TOO_BIG, find_way, judge, step_cost
from ddp_helpers.templates import template_files

WIDTH, HEADS, TOKENS, WORDS, LAYERS = 64, 4, 32, 211, 3


class Block(nn.Module):
    """GPT-2's, with dropout where Korthikanti et al. have it."""

    def __init__(self, flash):
        super().__init__()
        self.flash = flash
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.1)

    def attend(self, q, k, v):
        if self.flash:
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.drop((q @ k.transpose(-1, -2) / 8).softmax(dim=-1)) @ v

    def forward(self, x):
        size = (*x.shape[:2], HEADS, WIDTH // HEADS)
        parts = self.qkv(self.before(x)).chunk(3, dim=-1)
        q, k, v = (part.view(size).transpose(1, 2) for part in parts)
        x = x + self.drop(self.out(self.attend(q, k, v).transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.down(self.act(self.up(self.after(x)))))


class Words(nn.Module):
    def __init__(self, flash=True):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block(flash) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = self.words(x) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return (self.norm(x) @ self.words.weight.T).flatten(0, 1).float()


def make_words(size):
    x = torch.randint(WORDS, (size, TOKENS))
    return x, x.flatten()


@pytest.mark.parametrize(
    ("precision", "flash"),  # in float32 a CPU's dropout masks have four bytes, a GPU's have one
    [("float32", True), ("mixed", True), ("mixed", False), ("bfloat16", True), ("bfloat16", False)],
)
def test_the_formula_for_transformers_is_near_a_traced_one(precision, flash):
    sizes = (LAYERS, WIDTH, HEADS, TOKENS, WORDS)
    told = transformer(*sizes, precision=precision, flash=flash)
    traced = trace_model(lambda: Words(flash), make_words, precision=precision)
    assert told.parameters == traced.parameters
    for checkpointing in (False, True):
        how = Holding("fsdp", 2, 32, checkpointing=checkpointing)
        ours, real = memory_per_rank(told, how), memory_per_rank(traced, how)
        for name in ("parameters", "gradients", "optimizer", "gathered"):
            assert getattr(ours, name) == pytest.approx(getattr(real, name), rel=0.01), name
        kept = ours.activations + ours.recomputed
        assert kept == pytest.approx(real.activations + real.recomputed, rel=0.15)


def test_tensor_parallel_divides_what_korthikanti_says():
    one, four = (transformer(12, 1024, 16, 512, tensor_parallel=n) for n in (1, 4))
    area = 512 * 1024
    assert one.parts[0].kept.each == pytest.approx(34 * area)
    assert four.parts[0].kept.each == pytest.approx((10 + 24 / 4) * area)
    slow = transformer(12, 1024, 16, 512, flash=False, precision="mixed").parts[0].kept.each
    assert slow == pytest.approx(34 * area + 5 * 16 * 512**2)


def model_of(*sizes, blocks=True, **options):
    parts = tuple(
        Part(
            f"part {at}", ((size,),), kept=Bytes(each=100.0), inputs=Bytes(each=10.0), block=blocks
        )
        for at, size in enumerate(sizes)
    )
    return ModelMemory("model", parts, **options)


def test_shares_of_zero_and_of_fsdp():
    assert greedy_shares([5, 1, 7, 3], 2) == [[7, 1], [5, 3]]
    assert largest_share([(10, 3), (1, 4), (7,)], 4) == [9, 4, 2]
    model = model_of(1000, 1000, 1000, 1000)
    held = {
        name: memory_per_rank(model, Holding(name, 4, 1))
        for name in ("ddp", "zero1", "zero2", "fsdp_kept", "fsdp")
    }
    # Rajbhandari et al. 2020, figure 1, with 4 bytes for each of parameter, gradient, average
    assert [each.parameters for each in held.values()] == [16000, 16000, 16000, 4000, 4000]
    assert [each.gradients for each in held.values()] == [16000, 16000, 4000, 4000, 4000]
    assert [each.optimizer - 4 * 4 for each in held.values()][::4] == [32000, 8000]
    assert held["fsdp_kept"].gathered == 4 * (4000 + 1000)
    assert held["fsdp"].gathered == 4 * (2000 + 1000)
    totals = [each.total.value for each in held.values()]
    assert totals == sorted(totals, reverse=True)


def test_checkpointing_keeps_the_inputs_of_blocks():
    plain, again = (
        memory_per_rank(model_of(10, 10, 10), Holding(batch_size=2, checkpointing=flag))
        for flag in (False, True)
    )
    assert (plain.activations, again.activations) == (600, 60)


def test_a_pipeline_has_as_many_micro_batches_in_flight_as_its_schedule():
    model = model_of(10, 10, 10, 10)
    how = Holding(batch_size=2, stages=4, micro_batches=8)
    stages = [memory_per_rank(model, how, stage) for stage in range(4)]
    assert [each.activations for each in stages] == [800, 600, 400, 200]
    gpipe = dataclasses.replace(how, schedule="gpipe")
    assert memory_per_rank(model, gpipe, 0).activations == 1600
    assert memory_per_rank(model, how) == stages[0]
    assert [len(each) for each in split(model.parts, 3)] == [2, 1, 1]


def test_what_a_trace_sees_of_convolutions_frozen_layers_and_buffers():
    def make():
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
        )
        net[0].requires_grad_(False)
        return net

    model = trace_model(make, lambda n: (torch.randn(n, 3, 8, 8), torch.randint(5, (n,))))
    assert model.parameters == 16 + 8 * 36 * 5 + 5
    assert sum(part.frozen for part in model.parts) == 4 * (8 * 27 + 8) + 2 * 4 * 8 + 8
    # kept: the convolution's output, for the norm; the ReLU's; and the loss's few
    assert model.parts[0].kept.each == pytest.approx(2 * 4 * 8 * 36, rel=0.03)


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(2 * x if x.mean().item() > 0 else x)


def make_rows(size):
    return torch.randn(size, 8), torch.randint(3, (size,))


SHIFT = torch.ones(8)


class Encoder(nn.Module):
    """torch's own blocks, a tensor that was made before, and an answer that is no tensor."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, batch):
        return {"logits": self.out(self.layers((batch["x"] + SHIFT)[:, None])[:, 0])}


def test_models_of_other_kinds_are_traced():
    def loss(answer, target):
        return nn.functional.cross_entropy(answer["logits"], target)

    def make_batch(size):
        x, y = make_rows(size)
        return {"x": x}, y

    model = trace_model(Encoder, make_batch, loss_function=loss)
    assert model.parameters == sum(p.numel() for p in Encoder().parameters())
    assert [part.block for part in model.parts].count(True) == 2
    recurrent = lambda: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.LSTM(2, 3), First(), nn.Flatten())
    assert "too low: what nn.LSTM's kernels keep" in " ".join(
        trace_model(recurrent, make_rows).notes
    )
    # its copied layers keep activations, and no weights
    assert sum(part.kept.fixed for part in model.parts) == pytest.approx(4)  # the loss's sum


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def test_blocks_are_the_row_of_equal_modules():
    model = Words()
    assert repeated_blocks(model) == [*model.blocks]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


# ---- ways and verdicts


def test_a_verdict_needs_room_for_fragments_and_context():
    held = memory_per_rank(model_of(250_000_000), Holding())  # 4 GB, or 5 with its optimizer's step
    assert held.total.value == pytest.approx(5e9, rel=0.01)
    assert [judge(held, giga * 1e9) for giga in (5.4, 5.6, 8.5, 8.7)] == [
        *(TOO_BIG, MAY_FIT, MAY_FIT, FITS)
    ]


def test_the_first_way_that_fits():
    model = transformer(24, 2048, 16, 1024, 50257, precision="float32")
    models = {"ddp": model, "fsdp": model}
    found = find_way(models, ranks=8, batch_size=8, capacity=40e9)
    assert found.way.how.strategy == "fsdp"
    assert found.way.fits == FITS
    assert found.verdict.startswith("does not fit into 40 GB under DDP over 8, 8 samples a rank")
    assert "; fits with FSDP over 8" in found.verdict
    assert all(way.fits != FITS for way in found.ways[: found.ways.index(found.way)])
    for way in found.ways:  # the batch of a step stays what it is
        assert way.how.batch_size * way.how.micro_batches >= 8
    roomy = find_way(models, ranks=8, batch_size=8, capacity=400e9)
    assert roomy.verdict.startswith("fits into 400 GB under DDP over 8")


def test_no_way_fits():
    big = transformer(80, 8192, 64, 1024, 50257)
    found = find_way({"ddp": big, "fsdp": big}, ranks=8, batch_size=1, capacity=80e9)
    assert found.way is None
    assert f"FSDP over {found.enough_ranks} would" in found.verdict
    wide = transformer(1, 65536, 64, 1024, 50257)
    found = find_way({"ddp": wide, "fsdp": wide}, ranks=8, batch_size=1, capacity=80e9)
    assert "tensor parallel" in found.verdict


def test_each_command_has_only_options_that_the_template_knows():
    model = transformer(24, 2048, 16, 1024, 50257, precision="autocast")
    found = find_way({"ddp": model, "fsdp": model}, ranks=8, batch_size=8, capacity=40e9)
    for way in found.ways:
        new, start = way.commands()
        name = re.search(r"--template (\w+)", new)
        text = template_files()[name[1] if name else "starter"].read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", start.partition("train.py")[2]):
            assert f'add("{option}"' in text, (option, new)
    nodes = found.way.commands(ranks_per_node=4)[1]
    assert "--nnodes 2 --nproc-per-node 4" in nodes


def test_what_a_way_costs():
    machine = Machine("gpus", Link("fast", 1e-5, 1e11))
    work = Work("model", 1_000_000_000, 1e-3)
    plain = step_cost(machine, work, Holding("ddp", 8, 32))
    assert plain["recompute"] == plain["bubble"] == plain["tensor parallel"] == 0
    again = step_cost(machine, work, Holding("ddp", 8, 32, checkpointing=True))
    assert again["recompute"] == pytest.approx(plain["compute"] / 3)
    piped = step_cost(machine, work, Holding("ddp", 2, 32, stages=4, micro_batches=12))
    assert piped["bubble"] == pytest.approx(piped["compute"] * 3 / 12)
    assert piped["compute"] == pytest.approx(plain["compute"] * 12 / 4)
    sharded = step_cost(machine, work, Holding("fsdp", 8, 32))
    assert sharded["waiting"] > plain["waiting"]
    exchange = {"tensor_parallel": 4, "blocks": 6, "exchanged_bytes": 1e8}
    cut = step_cost(machine, work, Holding("ddp", 2, 32), **exchange)
    assert cut["tensor parallel"] == pytest.approx(24 * (2 * 3 * 1e-5 + 2 * 0.75 * 1e8 / 1e11))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Holding("zero3"), "strategy='zero3': expected one of ddp, zero1"),
        (lambda: Holding(optimizer="lion"), "optimizer='lion': expected one of sgd"),
        (lambda: Holding(ranks=0), "ranks=0: expected at least 1"),
        (lambda: memory_per_rank(model_of(1), Holding(stages=2)), "stages=2: the model has 1"),
        (lambda: memory_per_rank(model_of(1, 1), Holding(stages=2), 2), "stage=2: expected 0 to 1"),
        (lambda: ModelMemory("x", (Part("x", ()),)), "no trained parameters"),
        (lambda: transformer(2, 10, 3, 4), "width=10, heads=3"),
        (lambda: transformer(2, 12, 3, 4, precision="fp8"), "precision='fp8': expected one of"),
        (lambda: trace_model(Words, make_words, precision="fp8"), "precision='fp8'"),
        (lambda: trace_model(Words, make_words, tensor_parallel=2), "give both or neither"),
        (
            lambda: trace_model(Looks, make_rows),
            "tensors that have no values failed: DataDependent",
        ),
        (lambda: trace_model(lambda: Looks().requires_grad_(False), make_rows), "no trained"),
        (lambda: cut({"blocks.*.up": "sideways"}), "'sideways': expected one of colwise"),
        (lambda: cut({"blocks.*.top": "colwise"}), "no layer of the model is called"),
        (lambda: cut({"norm": "colwise"}), "norm is LayerNorm, expected nn.Linear"),
        (lambda: cut({"blocks.*.up": "colwise"}, 3), "256 features on 3 ranks"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def cut(plan, ranks=2):
    return trace_model(Words, make_words, tensor_parallel=ranks, plan=plan)


# ---- the command

FACTORY = """
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

def make():
    data = TensorDataset(torch.randn(64, 8), torch.randint(3, (64,)))
    return nn.Linear(8, 3), data
"""


def test_plan_memory_prints_a_table_a_verdict_and_the_command(capsys):
    words = "plan --memory --transformer 24x2048x16 --batch-size 8 --capacity 40 --ranks 1,8"
    assert cli.main(words.split()) == 0
    text = capsys.readouterr().out
    assert "8 ranks: does not fit into 40 GB under DDP over 8" in text
    assert "python -m ddp_helpers new train.py --template starter_fsdp" in text
    assert "torchrun --standalone" in text
    rows = [line.split() for line in text.splitlines() if "  DDP " in line]
    model = transformer(24, 2048, 16, 1024, 50257, precision="float32")
    held = memory_per_rank(model, Holding("ddp", 8, 8, foreach=False))
    assert float(rows[1][5]) == pytest.approx(held.parameters / 1e9, rel=0.01)
    assert cli.main("plan --memory --transformer 80x8192x64 --ranks 8".split()) == 1


def test_plan_memory_with_layers_and_stages_that_are_cut(capsys):
    words = "plan --memory --transformer 80x8192x64 --bf16 --batch-size 1 --capacity 80 --ranks 8"
    words += " --tensor-parallel 8 --stages 4 --micro-batches 8"
    assert cli.main(words.split()) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("     8  ")]
    assert len(rows) == 2 * len(STRATEGIES)
    way = "DDP over 8, 4 pipeline stages, activation checkpointing, 8 x 1 sample a rank"
    assert f"fits into 80 GB with tensor parallel over 8 and {way}" in text
    model = transformer(80, 8192, 64, 1024, 50257, tensor_parallel=8)
    held = memory_per_rank(model, Holding("ddp", 8, 1, stages=4, micro_batches=8))
    assert float(rows[0].split()[5]) == pytest.approx(held.parameters / 1e9, rel=0.01)
    assert "no template of ours" in text
    assert cli.main([*words.split(), "--capacity", "4"]) == 1
    assert "none of it fits into 4 GB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["starter", "starter_fsdp"])
def test_plan_memory_traces_a_template_as_its_owner_has_it(name, capsys):
    words = ["plan", "--memory", "--trace", str(template_files()[name]), "--ranks", "2"]
    assert cli.main([*words, "--capacity", "8", "--bf16"]) == 0
    text = capsys.readouterr().out
    assert "fits into 8 GB under DDP over 2" in text
    assert "--bf16" in text
    if name == "starter_fsdp":  # it has blocks, so recomputing keeps less
        held = [line.split() for line in text.splitlines() if "  FSDP" in line]
        plain, again = (float(row[-3]) for row in held)
        assert again < plain


def test_plan_memory_traces_a_factory(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FACTORY)
    words = ["plan", "--memory", "--trace", f"{tmp_path}/mine.py:make", "--ranks", "2"]
    assert cli.main(words) == 0
    assert "27 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "which model"),
        (["--trace", "a.py", "--transformer", "1x2x1"], "one of the two"),
        (["--trace", "missing.py"], "there is no such file"),
        (["--trace", "a.py", "--tensor-parallel", "2"], "trace_model(..., tensor_parallel=2"),
        (["--transformer", "4x64x4", "--stages", "9"], "stages=9: the model has 4 blocks"),
        (["--trace", str(template_files()["starter_lm"])], "expected a copy of starter.py"),
        (["--trace", "make"], "expected train.py, or path/script.py:factory"),
        (["--transformer", "2x16x2", "--capacity", "0"], "capacity=0"),
    ],
)
def test_plan_memory_says_what_is_missing(words, text, capsys):
    assert cli.main(["plan", "--memory", *words]) == 2
    assert text in capsys.readouterr().err


def test_every_precision_can_be_asked_for():
    totals = [
        memory_per_rank(transformer(4, 64, 4, 32, 99, precision=each), Holding(batch_size=64)).total
        for each in PRECISIONS
    ]
    assert totals[0].value > totals[3].value


# ---- real tensors of one process


def small_convolutions():
    def block(before, after):
        layers = [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    blocks = [block(3, 16), block(16, 32), block(32, 32)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 16, 10))


def make_photos(size):
    return torch.randn(size, 3, 32, 32), torch.randint(10, (size,))


def torch_encoder():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    layers = [nn.Embedding(WORDS, 64), nn.TransformerEncoder(layer, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * TOKENS, 10))


def make_lines(size):
    return torch.randint(WORDS, (size, TOKENS)), torch.randint(10, (size,))


@pytest.mark.parametrize(
    ("make_model", "make_batch"),
    [(small_convolutions, make_photos), (torch_encoder, make_lines), (Words, make_words)],
)
def test_a_forward_keeps_what_was_traced(make_model, make_batch):
    """Of a batch that is not one of those that were traced."""
    model, (x, y) = make_model(), make_batch(50)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        loss = nn.functional.cross_entropy(model(x), y)
    events = told.profiler.kineto_results.events()
    kept = sum(event.nbytes() for event in events if event.name() == "[memory]")
    traced = memory_per_rank(trace_model(make_model, make_batch), Holding(batch_size=50))
    assert traced.activations == pytest.approx(kept, rel=0.01)
    assert loss.requires_grad  # its graph was alive until here
