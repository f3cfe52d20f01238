"""The command line."""

import re
import subprocess
import sys

import numpy as np
import pytest

import fastxent
from fastxent.__main__ import COMMANDS, main

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
OPTIONAL = ("matplotlib", "numba", "rich", "scipy", "sklearn", "torch")


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Keep what the environment says of terminals, in continuous integration above all, out of the output."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without(monkeypatch):
    """Make a package look as if it were not installed."""

    def hide(package):
        for name in (package, *(module for module in sys.modules if module.startswith(f"{package}."))):
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("_bench", "_demo", "_plots", "_report"):
            monkeypatch.delitem(sys.modules, f"fastxent.{name}", raising=False)
            monkeypatch.delattr(fastxent, name, raising=False)

    return hide


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def refusal(capsys, *arguments):
    """What is printed on the way to exit status 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_demo(tmp_path, capsys):
    plot = tmp_path / "demo.png"
    assert main(["demo", "--epochs", "2", "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(PNG_SIGNATURE)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert len(re.findall(r"^ +[12]( +0\.\d{4} +0\.\d{4} +\d\d\.\d%){2}$", printed.out, re.MULTILINE)) == 2
    assert "in the loss" in printed.out
    assert str(plot) in printed.out


def test_demo_without_a_terminal_prints_plain_lines(tmp_path, capsys):
    main(["demo", "--epochs", "1", "--plot", str(tmp_path / "demo.png")])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 80


def test_demo_is_reproducible(tmp_path, capsys):
    def losses(seed):
        main(["demo", "--epochs", "1", "--seed", seed, "--plot", str(tmp_path / "demo.png")])
        return re.findall(r"0\.\d{4} ", capsys.readouterr().out)

    assert losses("1") == losses("1") != losses("2")


@pytest.mark.parametrize("seed", ["0", "1"])
def test_demo_learns_the_digits(tmp_path, capsys, seed):
    main(["demo", "--seed", seed, "--plot", str(tmp_path / "demo.png")])
    printed = capsys.readouterr().out
    accuracy = {name: float(percent) for name, percent in re.findall(r"^(\w.*?) {2,}(\d+\.\d)%", printed, re.MULTILINE)}
    assert accuracy["softmax regression"] >= 95
    assert accuracy["two-layer network"] >= 96


def test_demo_agrees_with_torch(tmp_path, capsys):
    pytest.importorskip("torch")
    main(["demo", "--epochs", "1", "--plot", str(tmp_path / "demo.png")])
    differences = re.search(
        r"^difference +(\S+), in the gradient at most (\S+)$", capsys.readouterr().out, re.MULTILINE
    )
    assert float(differences[1]) < 1e-6
    assert float(differences[2]) < 1e-8


def test_demo_without_torch_says_so(tmp_path, capsys, without):
    without("torch")
    assert main(["demo", "--epochs", "1", "--plot", str(tmp_path / "demo.png")]) == 0
    assert re.search(r"PyTorch +not installed", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "module", "package"),
    [
        ("demo", "matplotlib", "matplotlib"),
        ("demo", "rich", "rich"),
        ("demo", "sklearn", "scikit-learn"),
        ("bench", "matplotlib", "matplotlib"),
        ("bench", "rich", "rich"),
        ("bench", "ml_dtypes", "ml_dtypes"),
    ],
)
def test_commands_name_the_missing_package(tmp_path, capsys, without, command, module, package):
    without(module)
    options = ["--dtype", "bfloat16"] if module == "ml_dtypes" else ["--plot", str(tmp_path / "plot.png")]
    assert main([command, *options]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"fastxent {command} needs {package}: pip install 'fastxent[{command}]'\n"
    assert module == "ml_dtypes" or printed.out == ""


def test_modules_that_no_extra_installs_are_not_hidden(tmp_path, monkeypatch):
    def run(*arguments):
        raise ModuleNotFoundError("No module named 'flux_capacitor'", name="flux_capacitor")

    monkeypatch.setattr("fastxent._demo.run", run)
    with pytest.raises(ModuleNotFoundError, match="flux_capacitor"):
        main(["demo", "--plot", str(tmp_path / "demo.png")])


@pytest.mark.parametrize(
    ("command", "option", "value", "message"),
    [
        ("demo", "--epochs", "0", "0 is below 1"),
        ("demo", "--epochs", "-3", "-3 is below 1"),
        ("demo", "--epochs", "many", "'many' is not an integer"),
        ("demo", "--seed", "-1", "-1 is below 0"),
        ("demo", "--seed", "0.5", "'0.5' is not an integer"),
        ("demo", "--plot", "demo.pdf", "'demo.pdf' does not end in .png"),
        ("bench", "--shapes", "10", "'10' is not a shape such as 1024x10 (samples x classes)"),
        ("bench", "--shapes", "8x3,8x0", "'8x0' is not a shape"),
        ("bench", "--shapes", "8x-3", "'8x-3' is not a shape"),
        ("bench", "--shapes", "", "'' is not a shape"),
        ("bench", "--dtype", "int8", "invalid choice: 'int8'"),
        ("bench", "--threads", "0", "0 is below 1"),
        ("bench", "--threads", "1,some", "'some' is not an integer"),
        ("bench", "--threads", "1000000", "1000000 threads are more than the processors here"),
        ("bench", "--backend", "cython,cuda", "'cuda' is not one of cython, numba"),
        ("bench", "--json", "results.csv", "'results.csv' does not end in .json"),
        ("bench", "--plot", "results.pdf", "'results.pdf' does not end in .png"),
    ],
)
def test_bad_option_values_are_refused(capsys, command, option, value, message):
    assert f"argument {option}: {message}" in refusal(capsys, command, f"{option}={value}")


@pytest.mark.parametrize("name", ["missing/demo.png", "file/demo.png", "directory.png"])
def test_a_plot_that_cannot_be_written_is_refused(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    message = refusal(capsys, "demo", "--plot", str(tmp_path / name))
    assert "argument --plot: cannot write" in message
    assert name in message


def test_looking_whether_a_plot_can_be_written_leaves_no_trace(tmp_path, capsys):
    old = tmp_path / "old.png"
    old.write_bytes(b"precious")
    for path in (old, tmp_path / "new.png"):
        refusal(capsys, "demo", "--plot", str(path), "--epochs", "0")
    assert old.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [old]


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    fastxent.show_config()
    assert printed == capsys.readouterr().out
    assert f"version       {fastxent.__version__}\n" in printed


def test_info_needs_numpy_alone():
    hide = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))"
    assert "backends:" in run_python(f"{hide}; from fastxent.__main__ import main; main(['info'])")


def test_import_loads_no_command_line():
    loaded = set(run_python("import sys, fastxent; print(*sys.modules)").split())
    assert loaded.isdisjoint({"argparse", "fastxent.__main__", "fastxent._demo", *OPTIONAL})


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastxent {fastxent.__version__}\n"


def test_runs_as_a_module():
    command = [sys.executable, "-m", "fastxent", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"fastxent {fastxent.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("train",)])
def test_help_lists_the_commands(capsys, arguments):
    assert "command" in refusal(capsys, *arguments)
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^ +(\w+) {2,}\w", capsys.readouterr().out, re.MULTILINE)
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("widths", [(6, 3), (6, 5, 3), (6, 5, 4, 3)])
def test_backpropagation_against_numerical_derivatives(widths):
    demo = pytest.importorskip("fastxent._demo")
    rng = np.random.default_rng(0)
    layers = [demo.Affine(*(array.astype(np.float64) for array in layer)) for layer in demo.initial_layers(widths, rng)]
    for layer in layers:
        layer.bias[...] = rng.normal(size=layer.bias.shape)
    batch = demo.Samples(rng.normal(size=(7, 6)), rng.integers(3, size=7))

    def loss():
        return demo.loss_and_gradients(layers, batch, demo.Stopwatch())[0]

    _, gradients = demo.loss_and_gradients(layers, batch, demo.Stopwatch())
    step = 1e-5
    for layer, gradient in zip(layers, gradients, strict=True):
        for parameter, analytic in zip(layer, gradient, strict=True):
            numerical = np.empty_like(parameter)
            for index, value in np.ndenumerate(parameter):
                parameter[index] = value + step
                above = loss()
                parameter[index] = value - step
                numerical[index] = (above - loss()) / (2 * step)
                parameter[index] = value
            np.testing.assert_allclose(analytic, numerical, rtol=1e-6, atol=1e-9)
