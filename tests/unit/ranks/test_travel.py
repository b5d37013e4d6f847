"""Functions, values and errors, there and back, in one process."""

import functools
import pickle
import re
import sys
import threading
import time
from types import CodeType, FunctionType

import pytest
import torch

from ddp_helpers.ranks import travel, worker

guard = threading.Lock()


def there(fn, *args, **kwargs):
    """The call as a rank makes it."""
    fn, args, kwargs = travel.unpack(travel.pack(fn, args, kwargs))
    return fn(*args, **kwargs)


def back(value):
    """A value as the launcher gets it."""
    value, error = travel.load_value(travel.dump_value(value))
    assert error is None
    return value


# ---- to a rank


def test_functions_closures_lambdas():
    base = 10
    assert there(len, [1, 2]) == 2
    assert there(lambda a, b=0: base + a + b, 1, b=2) == 13
    assert there(functools.partial(pow, 2), 5) == 32


class Holder:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self):
        pass

    def __repr__(self):
        return "a holder"


def uses_a_global():
    return guard


def uses_an_outer_variable():
    door = threading.Lock()
    return lambda: door


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((len, ([], guard), {}), r"argument 1 \(lock\)"),
        ((lambda lock: time, (guard,), {}), r"argument 0 \(lock\)"),
        ((len, (), {"key": guard}), r"argument key= \(lock\)"),
        (("script.py:main", (guard,), {}), r"argument 0 \(lock\)"),
        (
            (uses_an_outer_variable(), (), {}),
            r"the variable `door` that the function uses \(lock\)",
        ),
        ((Holder(), (1,), {}), "a holder"),
    ],
)
def test_what_cannot_travel_is_named(call, named):
    way_out = "create it inside the function, on each rank"
    with pytest.raises(TypeError, match=f"^{named} can't travel to the ranks .*: {way_out}$") as e:
        travel.pack(*call)
    assert "cannot pickle" in str(e.value)
    assert e.value.__suppress_context__  # pickle's own stack tells a reader nothing


def test_a_global_that_cannot_travel_is_named():
    scope = {"threading": threading}
    exec("guard = threading.Lock()\ndef of_a_cell():\n    return guard", scope)
    with pytest.raises(TypeError, match="^the variable `guard` that the function uses"):
        travel.pack(scope["of_a_cell"], (), {})


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script as a rank meets it; what it changes in this process is put back."""
    monkeypatch.setattr(sys, "argv", ["before", "--flag"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "own_training", None)
    path = tmp_path / "own_training.py"
    path.write_text(
        "import sys\nseen = list(sys.argv)\ndef main(x):\n    return x, seen, __name__\n"
    )
    return path


def test_a_function_in_a_script(script):
    fn, args, kwargs = travel.unpack(travel.pack(f"{script}:main", (1,), {}))
    assert fn(*args, **kwargs) == (1, [str(script), "--flag"], "own_training")
    assert sys.path[0] == str(script.parent)
    assert sys.modules["own_training"].main is fn  # workers of a DataLoader import it by name
    assert travel.load_function(fn) is fn


def test_a_script_in_a_folder_with_a_colon(script):
    folder = script.parent / "run:2"
    folder.mkdir()
    script.rename(folder / script.name)
    assert travel.load_function(f"{folder / script.name}:main")(1)[0] == 1


def test_a_script_that_is_no_python_file(script):
    other = script.with_suffix(".txt")
    other.write_text("")
    text = re.escape(f"{other}: expected a Python file, whose name ends in .py")
    with pytest.raises(ValueError, match=f"^{text}$"):
        travel.load_function(f"{other}:main")


# ---- and back


def test_plain_values_and_local_classes():
    class Local:
        x = 3

    assert back({"a": [1, None]}) == {"a": [1, None]}
    assert back(Local()).x == 3


def test_a_slice_comes_without_the_rest():
    small = back(torch.arange(1000.0)[:2])
    assert small.untyped_storage().nbytes() == 8
    assert small.tolist() == [0.0, 1.0]
    assert not small.requires_grad
    assert not back(torch.zeros(1000)[::500]).requires_grad


def test_a_slice_still_wants_its_gradient():
    assert back(torch.zeros(1000)[:2].requires_grad_()).requires_grad


def test_whole_tensors_keep_what_they_are():
    assert isinstance(back(torch.nn.Parameter(torch.ones(2))), torch.nn.Parameter)
    assert back(torch.ones(2, 2)).tolist() == [[1, 1], [1, 1]]
    sparse = torch.eye(2).to_sparse()
    assert back(sparse).layout is torch.sparse_coo


def test_a_value_that_can_be_written_but_not_read():
    value, error = travel.load_value(b"no pickle")
    assert value is None
    assert error.type_name == "UnpicklingError"


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


def test_what_the_value_says_when_it_is_read():
    value, error = travel.load_value(pickle.dumps(Unreadable()))
    assert value is None
    assert str(error).startswith("ValueError: invalid literal for int()")


def test_a_value_that_cannot_leave():
    try:
        travel.dump_value(guard)
    except TypeError as raised:
        error = travel.cannot_travel(guard, raised)
    assert error.type_name == "TypeError"
    assert error.message == (
        "the function returned a _thread.lock, which can't leave its rank (cannot pickle "
        "'_thread.lock' object): return plain values, tensors, or model.state_dict() instead"
    )
    assert error.traceback.startswith("Traceback")
    assert "cannot pickle" in error.traceback
    assert abs(error.at - time.monotonic()) < 5


# ---- errors


def as_if_in(filename, text):
    """A function whose lines seem to stand in another file."""
    scope = {}
    exec(compile(text, filename, "exec"), scope)
    return scope["run"]


def caught(fn, *args):
    try:
        fn(*args)
    except BaseException as raised:
        raised.__traceback__ = raised.__traceback__.tb_next  # without this function
        return raised
    raise AssertionError("it raised nothing")


def test_an_error_without_the_launchers_lines():
    def fails():
        raise ValueError("bad label 11")

    cell = as_if_in("cell.py", "def run(fn):\n    fn()\n")
    inside = as_if_in(travel.__file__, "def run(outer, fn):\n    outer(fn)\n")
    outside = as_if_in(worker.__file__, "def run(inner, outer, fn):\n    inner(outer, fn)\n")
    error = travel.describe(caught(outside, inside, cell, fails), {"cell.py": "cell In[4]"})
    assert str(error) == "ValueError: bad label 11"
    assert [frame.function for frame in error.frames] == ["run", "fails"]
    first, last = error.frames
    assert (first.filename, first.line, first.is_user) == ("cell In[4]", 2, True)
    assert last.filename == __file__
    assert last.source == 'raise ValueError("bad label 11")'
    assert last.line == fails.__code__.co_firstlineno + 1
    top = "Traceback (most recent call last):\n  cell In[4], line 2, in run\n"
    assert error.traceback.startswith(top)
    assert error.traceback.endswith("ValueError: bad label 11\n")
    assert "ranks" not in error.traceback.replace(__file__, "")
    assert abs(error.at - time.monotonic()) < 5


def test_an_error_of_the_launcher_itself_keeps_its_line():
    fails = as_if_in(worker.__file__, "def run():\n    raise OSError('no room')\n")
    error = travel.describe(caught(fails), {})
    assert [frame.function for frame in error.frames] == ["run"]
    assert error.frames[0].is_launcher


def test_an_error_that_was_never_raised():
    error = travel.describe(KeyError("x"), {})
    assert error.frames == ()
    assert error.message == "'x'"


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_error_that_has_no_text():
    error = travel.describe(Silent(), {})
    assert error.type_name == "Silent"
    assert error.message == "(its text can't be shown)"


def test_an_error_that_cannot_even_be_formatted(monkeypatch):
    def fails(*_):
        raise RuntimeError("no notes")

    monkeypatch.setattr(travel.traceback, "format_exception", fails)
    error = travel.describe(KeyError("x"), {})
    assert error.traceback == "KeyError: (no text: RuntimeError('no notes'))\n"
    assert error.message == "'x'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[/__w/pytorch/gloo/pair.cc:534] Connection closed", "Connection closed"),
        ("[enforce fail at /__w/gloo/x.cc:9] op.size == 3", "op.size == 3"),
        ("[rank 1] [/__w/x.cc:1] stays", "[rank 1] [/__w/x.cc:1] stays"),
        ("[enforce fail at elsewhere] stays", "[enforce fail at elsewhere] stays"),
    ],
)
def test_places_in_torchs_own_sources_are_left_out(text, message):
    assert travel.describe(RuntimeError(text), {}).message == message


# ---- the places of code


def nested():
    def inner():
        return (lambda: 0), inner

    class Kept:
        def method(self):
            return "here"

    return inner, Kept


def files_of(code):
    """Of a function's code, and of all code within it."""
    inner = [constant for constant in code.co_consts if hasattr(constant, "co_filename")]
    return {code.co_filename}.union(*(files_of(part) for part in inner))


def test_code_keeps_its_file_and_lines_whatever_cloudpickle_writes(monkeypatch):
    def forgets(code):
        make, parts, *rest = theirs(code)
        return make, tuple("<dynamic-code>" if part == __file__ else part for part in parts), *rest

    import cloudpickle

    theirs = cloudpickle.Pickler.dispatch_table[CodeType]
    table = {**cloudpickle.Pickler.dispatch_table, CodeType: forgets}
    monkeypatch.setattr(cloudpickle.Pickler, "dispatch_table", table)
    travel.pickler.cache_clear()
    try:
        made, _, _ = travel.unpack(travel.pack(lambda: nested(), (), {}))
        function, _, _ = travel.unpack(travel.pack(locals_of(nested), (), {}))
    finally:
        travel.pickler.cache_clear()
    for code in (made.__code__, function.__code__):
        assert files_of(code) == {__file__}
    assert function.__code__.co_firstlineno == nested.__code__.co_firstlineno
    assert list(function.__code__.co_lines()) == list(nested.__code__.co_lines())
    assert function()[1]().method() == "here"


def locals_of(function):
    """The function as if it came from a cell: by value, not by the name of its module."""
    return FunctionType(function.__code__, {"__name__": "__main__", "__builtins__": __builtins__})
