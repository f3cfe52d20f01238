"""Choosing how it runs: process-wide, for a block, per thread and per task, and from the environment."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastxent as fx
from fastxent import _backends, _config

ROOT = str(Path(fx.__file__).parents[1])


def python(code, *options, **environ):
    """Run code in a fresh interpreter, with this package and not the folder's; environment variables by name."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTXENT_", "OMP_"))}
    path = os.pathsep.join(filter(None, [ROOT, inherited.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-P", *options, "-c", code],
        env={**inherited, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(autouse=True)
def _same_configuration_after():
    before = fx.get_config()
    yield
    fx.set_config(**before)


def test_set_config_is_for_the_process():
    fx.set_config(backend="cython", num_threads=3)
    assert fx.get_config() == {"backend": "cython", "num_threads": 3, "check_targets": True}
    seen = []
    thread = threading.Thread(target=lambda: seen.append(fx.get_config()))
    thread.start()
    thread.join()
    assert seen == [{"backend": "cython", "num_threads": 3, "check_targets": True}]
    fx.set_config(num_threads=None)
    assert fx.get_config() == {"backend": "cython", "num_threads": None, "check_targets": True}


def test_get_config_gives_a_copy():
    fx.get_config()["num_threads"] = 77
    assert fx.get_config()["num_threads"] != 77


def test_config_context_nests_and_ends():
    fx.set_config(backend="auto", num_threads=None)
    with fx.config_context(num_threads=1):
        with fx.config_context(backend="cython"):
            assert fx.get_config() == {"backend": "cython", "num_threads": 1, "check_targets": True}
        with pytest.raises(KeyError), fx.config_context(num_threads=2):
            raise KeyError
        assert fx.get_config() == {"backend": "auto", "num_threads": 1, "check_targets": True}
    assert fx.get_config() == {"backend": "auto", "num_threads": None, "check_targets": True}


def test_config_context_wins_over_set_config():
    with fx.config_context(num_threads=1):
        fx.set_config(num_threads=2)
        assert fx.get_config()["num_threads"] == 1
    assert fx.get_config()["num_threads"] == 2


def test_config_context_is_for_one_thread():
    seen = []
    with fx.config_context(num_threads=1):
        thread = threading.Thread(target=lambda: seen.append(fx.get_config()["num_threads"]))
        thread.start()
        thread.join()
    assert seen == [None]


def test_config_context_is_for_one_task():
    async def task(threads, entered, leave):
        with fx.config_context(num_threads=threads):
            entered.set()
            await leave.wait()
            return fx.get_config()["num_threads"]

    async def both():
        one, two, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(task(1, one, leave)), asyncio.create_task(task(2, two, leave))]
        await one.wait()
        await two.wait()
        outside = fx.get_config()["num_threads"]
        leave.set()
        return outside, *await asyncio.gather(*tasks)

    assert asyncio.run(both()) == (None, 1, 2)


def test_num_threads_is_handed_to_the_kernels(monkeypatch):
    seen = []

    class Kernels:
        def softmax(self, x, scale, num_threads, out):
            seen.append(num_threads)

    monkeypatch.setattr(_backends, "load", lambda backend: seen.append(backend) or Kernels())
    monkeypatch.setattr(_config, "_processors", 4)
    for threads in (1, 3, 99, None):
        with fx.config_context(backend="numba", num_threads=threads):
            fx.softmax(np.zeros(3))
    assert seen == ["numba", 1, "numba", 3, "numba", 4, "numba", 4]


def test_auto_is_cython():
    assert _backends.load("auto") is _backends.load("cython")


ERRORS = [
    ({"threads": 1}, TypeError, r"unknown option 'threads', expected one of backend, num_threads, check_targets"),
    ({"backend": "opencl"}, ValueError, r"backend is 'opencl', expected one of auto, cython, numba, cuda"),
    ({"backend": None}, ValueError, r"backend is None, expected one of auto"),
    ({"backend": np.array(["cython", "numba"])}, ValueError, r"backend is array\(.*, expected one of auto"),
    ({"num_threads": 0}, ValueError, r"num_threads is 0, expected a positive int or None"),
    ({"num_threads": -1}, ValueError, r"num_threads is -1, expected a positive int or None"),
    ({"num_threads": 2.0}, TypeError, r"num_threads is 2\.0, expected a positive int or None"),
    ({"num_threads": True}, TypeError, r"num_threads is True, expected a positive int or None"),
    ({"check_targets": 1}, TypeError, r"check_targets is 1, expected True or False"),
    ({"num_threads": "2"}, TypeError, r"num_threads is '2', expected a positive int or None"),
]


@pytest.mark.parametrize(("options", "error", "message"), ERRORS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_wrong_options(options, error, message):
    before = fx.get_config()
    with pytest.raises(error, match=message):
        fx.set_config(**options)
    with pytest.raises(error, match=message), fx.config_context(**options):
        pass
    assert fx.get_config() == before


# --- from outside ------------------------------------------------------------------------------------------------


def test_environment_sets_the_defaults():
    code = "import fastxent as fx; print(fx.get_config()); fx.set_config(num_threads=1); print(fx.get_config())"
    result = python(code, FASTXENT_BACKEND="numba", FASTXENT_NUM_THREADS="2")
    assert result.stdout.splitlines() == [
        "{'backend': 'numba', 'num_threads': 2, 'check_targets': True}",
        "{'backend': 'numba', 'num_threads': 1, 'check_targets': True}",
    ]
    assert python("import fastxent as fx; print(fx.get_config())", FASTXENT_BACKEND="").stdout.splitlines() == [
        "{'backend': 'auto', 'num_threads': None, 'check_targets': True}"
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FASTXENT_BACKEND", "opencl", "ValueError: backend is 'opencl', expected one of auto, cython, numba, cuda"),
        ("FASTXENT_NUM_THREADS", "many", "ValueError: FASTXENT_NUM_THREADS is 'many', expected a positive integer"),
        ("FASTXENT_NUM_THREADS", "-1", "ValueError: FASTXENT_NUM_THREADS is '-1', expected a positive integer"),
        ("FASTXENT_NUM_THREADS", "0", "ValueError: num_threads is 0, expected a positive int"),
        ("FASTXENT_ISA", "v9", "RuntimeError: FASTXENT_ISA is 'v9', expected one of "),
    ],
)
def test_wrong_environment(name, value, message):
    result = python("import fastxent as fx; fx.softmax([0.0])", **{name: value})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("level", _backends.available_levels())
def test_isa_level_from_the_environment(level):
    code = "from fastxent import _backends; print(_backends.load('auto').__name__)"
    assert python(code, FASTXENT_ISA=level).stdout.strip() == f"fastxent.{_backends.available_levels()[level]}"
    code = "import fastxent as fx; print(fx.show_config('dicts')['cython build']['level'])"
    assert python(code, FASTXENT_ISA=level).stdout.strip() == level


def test_the_best_level_is_the_default():
    assert _backends.choose_level({}) == list(_backends.available_levels())[-1]


def test_openmp_variable_limits_the_threads():
    assert _config.count_processors({"OMP_NUM_THREADS": "1"}) == 1
    most = _config.count_processors({})
    for value in ("", "0", "many", "9999", "9999,2"):
        assert _config.count_processors({"OMP_NUM_THREADS": value}) == most


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_mask_limits_the_threads():
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert python(f"{one}; from fastxent import _config; print(_config.num_threads(None))").stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, np.inf),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_quota_of_the_control_group(tmp_path, files, processors):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _config._quota(str(tmp_path)) == processors


# --- show_config -------------------------------------------------------------------------------------------------


def test_show_config_says_what_runs(capsys):
    assert fx.show_config() is None
    text = capsys.readouterr().out
    report = fx.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert report["fastxent"] == {"version": fx.__version__, **fx.get_config()}
    assert report["cython build"]["level"] == _backends.choose_level()
    assert report["backends"]["cython"] == "available"
    assert report["backends"].keys() == {"cython", "numba", "cuda"}
    assert report["threads"]["used"] == _config.num_threads(None)
    for section, entries in report.items():
        assert f"{section}:\n" in text
        for name, value in entries.items():
            assert name in text
            assert str(value) in text
    assert {"compiler", "flags", "threads"} <= set(report["cython build"])


def test_show_config_takes_two_modes():
    with pytest.raises(ValueError, match=r"mode is 'json', expected 'stdout' or 'dicts'"):
        fx.show_config("json")
