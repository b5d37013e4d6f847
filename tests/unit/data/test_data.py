"""ddp_helpers/data and data/: the files are what they say, and every rank gets its share."""

import gzip
import hashlib
import importlib.util
import itertools
import multiprocessing
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ddp_helpers import data
from ddp_helpers.data import (
    DatasetError,
    exact_split,
    load_mnist_5k,
    make_eval_loader,
    make_train_loader,
    read_idx,
)

REPOSITORY = Path(__file__).resolve().parents[3]
FILES = REPOSITORY / "data" / "mnist_5k"
ONE_FILE = FILES / "mnist_5k.pt"


def script(name):
    """A script that made files, as a module."""
    spec = importlib.util.spec_from_file_location("maker", REPOSITORY / "data" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker():
    return script("make_mnist_5k.py")


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(FILES, tmp_path / "mnist_5k")
    return tmp_path


def indices(loader):
    """The samples of one pass over a loader of `numbers(n)`."""
    return [int(value) for (batch,) in loader for value in batch]


def numbers(n):
    return TensorDataset(torch.arange(n))


# ---- the files


def test_digits_have_the_promised_shapes_and_scale():
    train, test = load_mnist_5k(), load_mnist_5k(train=False)
    for part, n in ((train, 4000), (test, 1000)):
        images, labels = part.tensors
        assert images.shape == (n, 1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.bincount(labels).tolist() == [n // 10] * 10
    images = train.tensors[0]
    raw = images * data.MNIST_STD + data.MNIST_MEAN
    assert raw.min() == pytest.approx(0, abs=1e-6)
    assert raw.max() == pytest.approx(1, abs=1e-6)
    assert images.mean() == pytest.approx(0, abs=0.02)
    assert images.std() == pytest.approx(1, abs=0.02)


def test_no_held_out_digit_is_trained_on():
    train = {image.numpy().tobytes() for image in load_mnist_5k().tensors[0]}
    test = {image.numpy().tobytes() for image in load_mnist_5k(train=False).tensors[0]}
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_readme_lists_every_file_with_its_sha256():
    readme = (REPOSITORY / "data/README.md").read_text()
    digits, text = readme.split("# data/austen")
    listed = set(re.findall(r"`([0-9a-f]{64})`", digits))
    found = set()
    for path in FILES.glob("*.gz"):
        found.add(hashlib.sha256(path.read_bytes()).hexdigest())
        found.add(hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest())
    assert len(found) == 8
    found.add(hashlib.sha256(ONE_FILE.read_bytes()).hexdigest())
    tensors = torch.load(ONE_FILE, weights_only=True)
    found.add(hashlib.sha256(b"".join(each.numpy().tobytes() for each in tensors)).hexdigest())
    assert listed == found
    for path in (REPOSITORY / "data/austen").iterdir():
        assert f"| `{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in text


def test_git_takes_the_files():
    names = [str(path) for path in FILES.iterdir()]
    ignored = subprocess.run(["git", "check-ignore", *names], cwd=REPOSITORY, capture_output=True)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert not ignored.stdout


def test_gzip_header_names_no_time_and_no_machine():
    for path in FILES.glob("*.gz"):
        assert path.read_bytes()[:10] == b"\x1f\x8b\x08\x00" + bytes(4) + b"\x02\xff"


def test_readme_recipes_read_the_files(monkeypatch):
    readme = (REPOSITORY / "data/README.md").read_text()
    one, each = (part.split("```")[0] for part in readme.split("```python\n")[1:])
    names = {}
    monkeypatch.chdir(FILES)
    exec(one, names)
    assert torch.equal(names["held_out_x"], read_idx(FILES / "t10k-images-idx3-ubyte.gz"))
    exec(each, names)
    for path in FILES.glob("*.gz"):
        assert torch.equal(names["read_idx"](path), read_idx(path))


def test_the_one_file_is_made_again_from_the_four(tmp_path):
    maker = script("make_mnist_5k_pt.py")
    tensors = [maker.read_idx(FILES / name) for name in maker.FILES]
    (tmp_path / "again.pt").write_bytes(maker.packed(tensors))
    assert maker.packed(tensors) == maker.packed(tensors), "a date or an id stands in it"
    assert (tmp_path / "again.pt").stat().st_size < 1e6
    for file in (ONE_FILE, tmp_path / "again.pt"):
        loaded = torch.load(file, weights_only=True)
        assert [each.dtype for each in loaded] == [torch.uint8] * 4
        assert [each.shape[0] for each in loaded] == [4000, 4000, 1000, 1000]
        assert all(map(torch.equal, loaded, tensors))


def test_maker_splits_evenly_and_repeatably(maker):
    rows = [(bytes([i % 256, i // 256]) + bytes(782), i % 10) for i in range(2000)]
    train, test = maker.split(rows)
    assert len(test) == 1000
    assert sorted(train + test) == sorted(rows)
    assert [label for _, label in test] != sorted(label for _, label in test)
    assert maker.split(rows[::-1]) == (train, test)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.randoms())
def test_idx_round_trip(maker, tmp_path_factory, shape, random):
    values = bytes(random.getrandbits(8) for _ in range(torch.Size(shape).numel()))
    path = tmp_path_factory.mktemp("idx") / "x.gz"
    content = maker.idx_bytes(values, tuple(shape))
    path.write_bytes(maker.gzip_bytes(content))
    for got in (read_idx(path), read_idx(content)):
        assert got.dtype == torch.uint8
        assert list(got.shape) == shape
        assert bytes(got.flatten().tolist()) == values


# ---- missing and damaged files


def test_missing_file_names_path_and_way_out(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file .*t10k-images.*DDP_HELPERS_DATA"):
        load_mnist_5k(train=False, root=tmp_path)
    monkeypatch.setenv("DDP_HELPERS_DATA", str(tmp_path / "else"))
    with pytest.raises(FileNotFoundError, match="else/mnist_5k"):
        load_mnist_5k()


def test_environment_variable_names_the_folder(copied, monkeypatch):
    monkeypatch.setenv("DDP_HELPERS_DATA", str(copied))
    assert len(load_mnist_5k()) == 4000
    (copied / "mnist_5k" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=str(copied)):
        load_mnist_5k()
    assert len(load_mnist_5k(root=FILES.parent)) == 4000  # the argument goes first


@pytest.mark.parametrize("keep", [0, 1, 9, 10, 1000, -9, -1])
def test_truncated_file_gives_one_clear_error(copied, keep):
    path = copied / "mnist_5k" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"t10k-images.*git checkout"):
        load_mnist_5k(train=False, root=copied)


@pytest.mark.parametrize("at", [0, 3, 500, -6])
def test_flipped_byte_gives_one_clear_error(copied, at):
    path = copied / "mnist_5k" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"t10k-images.*git checkout"):
        load_mnist_5k(train=False, root=copied)


def test_changed_content_is_refused(copied):
    path = copied / "mnist_5k" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DatasetError, match=r"t10k-labels.*was changed.*git checkout"):
        load_mnist_5k(train=False, root=copied)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01" + bytes(8)])
def test_no_idx_file_is_refused(content):
    with pytest.raises(DatasetError, match="expected an IDX file"):
        read_idx(content)


def test_what_is_no_idx_file_is_shown_and_named(tmp_path):
    floats = b"\x00\x00\x0d\x01" + bytes(8)
    told = r"starts with b'\x00\x00\r\x01': expected an IDX file of bytes"
    with pytest.raises(DatasetError) as caught:
        read_idx(floats)
    assert str(caught.value) == f"the content {told}"
    path = tmp_path / "floats.gz"
    path.write_bytes(gzip.compress(floats))
    with pytest.raises(DatasetError, match=re.escape(f"{path} starts with")):
        read_idx(path)


def test_idx_of_one_value_without_dimensions():
    assert read_idx(b"\x00\x00\x08\x00\x07") == torch.tensor(7, dtype=torch.uint8)
    with pytest.raises(DatasetError, match=r"holds 0 values, but its header says \[\]"):
        read_idx(b"\x00\x00\x08\x00")


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match="'ddp_helpers.data' has no attribute 'nothing'"):
        _ = data.nothing


def test_idx_of_wrong_length_is_refused(maker):
    with pytest.raises(DatasetError, match=r"holds 5 values, but its header says \[2, 3\]"):
        read_idx(maker.idx_bytes(bytes(5), (2, 3)))


# ---- shares


@given(st.integers(0, 500), st.integers(1, 40))
def test_exact_split_is_a_partition_into_equal_parts(n, world_size):
    shares = [exact_split(n, rank, world_size) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("n", "rank", "world_size", "text"),
    [
        (10, 2, 2, "rank=2 with world_size=2: expected 0 to 1"),
        (10, -1, 2, "rank=-1"),
        (10, 0, 0, "world_size=0"),
        (-1, 0, 1, "n=-1"),
        (10, 0.0, 1, r"rank=0\.0"),
        (10, 0, True, "world_size=True"),
    ],
)
def test_exact_split_names_the_wrong_value(n, rank, world_size, text):
    with pytest.raises(ValueError, match=text):
        exact_split(n, rank, world_size)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9))
def test_eval_loaders_see_each_sample_once(n, world_size, batch):
    seen = [
        indices(make_eval_loader(numbers(n), batch, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(itertools.chain(*seen)) == list(range(n))


def test_eval_batches_have_the_size_that_was_asked_for():
    batches = [batch.tolist() for (batch,) in make_eval_loader(numbers(7), 3)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_train_loaders_have_equal_lengths_and_miss_nothing(n, world_size, batch, epoch):
    seen = []
    for rank in range(world_size):
        loader = make_train_loader(numbers(n), batch, rank=rank, world_size=world_size)
        loader.sampler.set_epoch(epoch)
        seen.append(indices(loader))
    assert len({len(share) for share in seen}) == 1
    assert set(itertools.chain(*seen)) == set(range(n))


def test_two_ranks_together_draw_the_batches_of_one():
    def batches(world_size):
        loaders = [
            make_train_loader(numbers(96), 16 // world_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        steps = zip(*loaders, strict=True)
        return [sorted(torch.cat([batch for (batch,) in step]).tolist()) for step in steps]

    assert batches(2) == batches(1)
    assert batches(4) == batches(1)


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch):
        loader = make_train_loader(numbers(50), 10, seed=seed)
        loader.sampler.set_epoch(epoch)
        return indices(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(7, 0)


def test_drop_last_leaves_out_what_does_not_fill_a_batch():
    loaders = [
        make_train_loader(numbers(23), 4, rank=r, world_size=2, drop_last=True) for r in (0, 1)
    ]
    seen = [indices(loader) for loader in loaders]
    assert [len(share) for share in seen] == [8, 8]
    assert len(set(seen[0] + seen[1])) == 16


class Coin(Dataset):
    """Each sample is a random number, as an augmentation would draw it."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.rand(1)


def test_workers_of_each_rank_draw_their_own_numbers(no_process_left):
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch"])  # a quicker start
    draws = []
    for rank in range(2):
        loader = make_train_loader(Coin(), 4, rank=rank, world_size=2, num_workers=2)
        assert loader.multiprocessing_context.get_start_method() == "forkserver"
        draws += torch.cat(list(loader)).flatten().tolist()
        del loader
    assert len(draws) == 16
    assert len(set(draws)) == 16


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "options", "text"),
    [
        (numbers(8), {"batch_size_per_rank": 0}, "batch_size_per_rank=0.*at least 1"),
        (numbers(8), {"batch_size_per_rank": 2.5}, r"batch_size_per_rank=2\.5"),
        (numbers(8), {"num_workers": -1}, "num_workers=-1"),
        (numbers(8), {"rank": 3, "world_size": 2}, "rank=3 with world_size=2"),
        (numbers(8), {"seed": None}, "seed=None"),
        (numbers(0), {}, "the dataset is empty"),
        (Endless(), {}, "Endless has no length"),
        (numbers(7), {"world_size": 2, "drop_last": True}, "leaves no batch: 7 samples"),
    ],
)
def test_loader_names_the_wrong_value(dataset, options, text):
    with pytest.raises(ValueError, match=text):
        make_train_loader(dataset, **{"batch_size_per_rank": 4, **options})
