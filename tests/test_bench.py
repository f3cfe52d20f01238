"""The benchmark: what it runs, not how long that takes."""

import importlib
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import fastxent as fx
from fastxent import _backends, reference
from fastxent.__main__ import main

pytest.importorskip("rich")
from fastxent import _bench
from fastxent._peers import PEERS, Mode, Problem, bind_fastxent, cannot_run, peer_modules

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TOLERANCES = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}

# Peers warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def quick(monkeypatch):
    """Two rounds, without the peers that take long to compile."""
    monkeypatch.setattr(_bench, "QUICK", _bench.Effort(0, 2, 2))
    monkeypatch.setattr(_bench, "PAUSE", 0)
    monkeypatch.setattr(_bench, "MAX_PROBLEMS", 3)
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *options: main(["bench", "--quick", *options])


def make_problem(shape, dtype):
    return _bench.make_problems(shape, dtype)[0]


def as_float64(array):
    """What peers return; tensors of bfloat16 are the ones that NumPy cannot read."""
    return np.asarray(array.double() if hasattr(array, "double") else array).astype(np.float64)


# --- the command -------------------------------------------------------------------------------------------------


def test_quick_run(tmp_path, capsys, quick):
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    assert quick("--shapes", "5x3,2x4x3", "--threads", "1", "--json", str(path), "--plot", str(plot)) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "(5, 3), float32, 1 thread\n" in printed
    assert "(2, 4, 3), float32, 1 thread\n" in printed
    assert "Left out: scikit-learn (" in printed
    document = json.loads(path.read_text())
    assert document["configuration"]["fastxent"]["version"] == fx.__version__
    assert [report["shape"] for report in document["reports"]] == [[5, 3], [2, 4, 3]]
    for report in document["reports"]:
        check_report(report, printed)
    assert plot.read_bytes().startswith(PNG_SIGNATURE)


def check_report(report, printed):
    contenders = {result["contender"] for result in report["results"]}
    assert {"fastxent", *(peer.name for peer in PEERS)} == contenders | set(report["left_out"])
    assert all(number > 0 for number in report["limits"].values())
    memory, arithmetic = report["limits"]["read"], report["limits"]["compute"]
    for result in report["results"]:
        assert re.search(rf"^{re.escape(result['contender'])} +{re.escape(result['mode'])} ", printed, re.MULTILINE)
        assert math.isclose(result["ns_per_logit"], result["seconds"] * 1e9 / math.prod(report["shape"]))
        assert 0 < result["fastest"] <= result["quartiles"][0] <= result["seconds"] <= result["quartiles"][1]
        assert 0 <= result["error_ulp"] < 100
        if result["mode"] == "loss":
            assert math.isclose(result["over_limit"], result["ns_per_logit"] / max(memory, arithmetic))
    assert [result["mode"] for result in report["results"] if result["contender"] == "fastxent"] == [
        "loss", "grad, out=", "grad, in place", "grad, fresh"
    ]  # fmt: skip


def test_plots_have_a_style_for_everybody():
    plots = pytest.importorskip("fastxent._plots")
    assert set(plots.STYLES) == {"fastxent", "fastxent numba", *(peer.name for peer in PEERS)}
    assert len(set(plots.STYLES.values())) == len(plots.STYLES)


def test_best_peer_is_of_the_same_kind():
    def contender(name, mode):
        return _bench.Contender(name, mode, [], 1)

    contenders = [
        contender("fastxent", Mode.LOSS),
        contender("torch", Mode.LOSS),
        contender("SciPy", Mode.LOSS),
        contender("fastxent", Mode.REUSED),
        contender("torch", Mode.FRESH),
    ]
    times = [[1.0], [5.0], [4.0, 4.0, 9.0], [2.0], [7.0]]
    assert _bench.best_peer(contenders, times, False) == 4
    assert _bench.best_peer(contenders, times, True) == 7
    assert _bench.best_peer(contenders[:1], times[:1], True) == 0


def test_backends_that_are_missing_are_named(capsys, quick, monkeypatch):
    def unavailable():
        raise RuntimeError("backend 'numba' needs Numba: pip install 'fastxent[numba]'")

    monkeypatch.setitem(_backends._LOADERS, "numba", unavailable)
    _backends.load.cache_clear()
    monkeypatch.setattr(_bench, "PEERS", ())
    assert quick("--shapes", "5x3", "--backend", "cython,numba") == 0
    assert "Left out: fastxent numba (backend 'numba' needs Numba: pip install 'fastxent[numba]').\n" in (
        capsys.readouterr().out
    )


def test_a_peer_that_fails_does_not_stop_the_others(capsys, quick, monkeypatch):
    def broken(module, threads):
        raise OSError("no compiler\nand a long story")

    monkeypatch.setattr(_bench, "PEERS", (PEERS[0]._replace(name="broken", modules=("math",), setup=broken),))
    assert quick("--shapes", "5x3") == 0
    printed = capsys.readouterr().out
    assert "Left out: broken (OSError: no compiler).\n" in printed
    assert re.search("^fastxent +loss ", printed, re.MULTILINE)


def test_leaves_the_configuration_alone(quick, monkeypatch):
    monkeypatch.setattr(_bench, "PEERS", ())
    before = fx.get_config()
    quick("--shapes", "5x3", "--threads", "1")
    assert fx.get_config() == before


def test_defaults():
    full = _bench.make_plan(None, "float32", None, ("cython",), False)
    assert full.shapes == _bench.SHAPES
    assert full.threads[0] == 1
    assert len(set(full.threads)) == len(full.threads)
    assert len(_bench.make_plan(None, "float32", None, ("cython",), True).threads) == 1


# --- what it compares --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_compute_the_same(peer, shape, dtype):
    problem = make_problem(shape, dtype)
    if cannot_run(peer, problem.logits):
        pytest.skip(cannot_run(peer, problem.logits))
    if peer.slow_start and (len(shape), dtype) != (2, "float32"):
        pytest.skip("slow to start")
    check_calls(peer.setup(*peer_modules(peer), 1)(problem), problem, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_all_modes_of_fastxent_compute_the_same(dtype):
    problem = make_problem((6, 5), dtype)
    check_calls(bind_fastxent(problem), problem, TOLERANCES[dtype])


def check_calls(calls, problem, tolerance):
    exact = Problem(problem.logits.astype(np.float64), problem.target)
    loss, grad = reference.cross_entropy(*exact)
    losses, _ = reference.cross_entropy(*exact, reduction="none")
    np.testing.assert_allclose(as_float64(calls.pop(Mode.LOSSES)()), losses, rtol=tolerance)
    np.testing.assert_allclose(as_float64(calls.pop(Mode.LOSS)()), loss, rtol=tolerance)
    for call in calls.values():
        found_loss, found_grad = call()
        np.testing.assert_allclose(as_float64(found_loss), loss, rtol=tolerance)
        np.testing.assert_allclose(as_float64(found_grad), grad, atol=tolerance * np.abs(grad).max())


def test_exact_losses_in_several_parts(monkeypatch):
    problem = make_problem((3000, 700), "float32")
    expected, _ = reference.cross_entropy(*problem, reduction="none")
    np.testing.assert_allclose(_bench.exact_losses(problem), expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_in_units_in_the_last_place(dtype):
    exact = np.array([1.0, 3.0])
    losses = exact * [1 + 2 * np.finfo(dtype).eps, 1]
    assert _bench.largest_error(losses, exact, np.dtype(dtype)) == 2


def test_problems_outgrow_caches_or_are_many():
    few, many = _bench.make_problems((4096, 1000), "float32"), _bench.make_problems((4, 3), "float32")
    assert sum(problem.logits.nbytes for problem in few) > _bench.ROTATION // 2
    assert len(many) == _bench.MAX_PROBLEMS
    assert not np.array_equal(many[0].logits, many[1].logits)


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=_backends.available_levels().values())
def limits(request):
    return importlib.import_module(f"fastxent.{request.param.replace('_kernels', '_limits')}")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4097, 131072, 300001])
@pytest.mark.parametrize("past_caches", [False, True])
def test_stream_copies(limits, size, past_caches, threads):
    source = np.random.default_rng(0).integers(256, size=size).astype(np.uint8)
    padded = np.zeros(size + 2, np.uint8)
    limits.stream(source, padded[1 : size + 1], past_caches, threads)
    np.testing.assert_array_equal(padded, np.pad(source, 1))


@pytest.mark.parametrize("position", [0, 7, 131071, 131072, 300000])
def test_stream_reads_every_byte(limits, position):
    source = np.zeros(300001, np.uint8)
    assert limits.stream(source, None, False, 2) == 0
    source[position] = 255
    assert limits.stream(source, None, False, 2) != 0


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("in_double", "tolerance"), [(False, 1e-6), (True, 1e-10)])
def test_arithmetic_is_that_of_a_softmax(limits, in_double, tolerance, gradient, threads):
    row = -np.arange(limits.ROW_CLASSES) / 256
    rows = 100
    ends = np.where(np.arange(rows) % 2, -9.0, -8.0)
    expected = np.exp(row[:-1]).sum() + np.exp(ends).mean()
    np.testing.assert_allclose(limits.softmax_rows(rows, gradient, in_double, threads), expected, rtol=tolerance)


def test_waits_until_other_threads_stop_spinning(monkeypatch):
    used = iter([0, 1, 1, 2, 2, 2])  # seconds of the processor before and after each pause
    pauses = []
    monkeypatch.setattr(_bench, "time", SimpleNamespace(process_time=lambda: next(used), sleep=pauses.append))
    _bench.wait_for_quiet()
    assert len(pauses) == 3
