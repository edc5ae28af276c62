import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.demo import commands
from nnunet_godc.demo.commands import (
    TrainingWatcher,
    duration,
    find_command,
    nnunet_environment,
    run_command,
)
from nnunet_godc.errors import UserError


@pytest.fixture
def python(monkeypatch):
    """Lets the tests run this Python under a command's name."""
    monkeypatch.setattr(commands, "find_command", lambda name: sys.executable)
    return "nnUNetv2_train"


def test_the_log_holds_all_output_and_the_screen_what_the_watcher_shows(tmp_path, capsys, python):
    log = tmp_path / "log.txt"
    script = "import sys; print('Epoch 0'); print('noise', file=sys.stderr)"
    run_command(
        [python, "-u", "-c", script],
        log=log,
        environment={},
        watch=lambda line: line.strip() if "Epoch" in line else None,
    )
    assert sorted(log.read_text().split("\n")) == ["", "Epoch 0", "noise"]
    shown = capsys.readouterr().out
    assert "    Epoch 0\n" in shown
    assert "noise" not in shown.replace(script, "")


def test_a_failing_command_shows_the_end_of_its_log_and_one_sentence(tmp_path, capsys, python):
    log = tmp_path / "log.txt"
    script = "import sys; [print('line', i) for i in range(100)]; sys.exit('the reason')"
    with pytest.raises(
        UserError, match=r"nnUNetv2_train ended with exit status 1; .* all of it in .*log\.txt"
    ) as error:
        run_command([python, "-u", "-c", script], log=log, environment={})
    assert "\n" not in str(error.value)
    shown = capsys.readouterr().out
    assert "| the reason\n" in shown
    assert "| line 99\n" in shown
    assert "| line 50\n" not in shown
    assert "line 50\n" in log.read_text()


def test_a_command_that_prints_what_is_no_text_is_still_logged(tmp_path, python):
    log = tmp_path / "log.txt"
    run_command([python, "-c", r"import os; os.write(1, b'\xff\xfe ok\n')"], log=log, environment={})
    assert "ok" in log.read_text(encoding="utf-8")


def test_a_missing_command_is_named_with_its_remedy():
    with pytest.raises(UserError, match="nnUNetv2_no_such_thing is not to be found; install nnU-Net"):
        find_command("nnUNetv2_no_such_thing")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_running_command_and_its_workers(tmp_path, number, status):
    """As in `nnunet-godc demo`: the command's own worker process must not stay behind either."""
    workers = tmp_path / "workers"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from nnunet_godc import cli\n"
        "import nnunet_godc.demo\n"
        "from nnunet_godc.demo import commands\n"
        "nnunet_godc.demo.run_demo = lambda out: commands.run_command(\n"
        f"    ['sh', '-c', 'sleep 60 & echo $! $$ > {workers}.tmp; mv {workers}.tmp {workers}; wait'],\n"
        "    log=out / 'log.txt', environment=os.environ)\n"
        f"sys.exit(cli.main(['demo', '--out', {str(tmp_path)!r}]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        wait_until(workers.exists)
        process.send_signal(number)
        assert process.wait(timeout=30) == status
        assert "Traceback" not in process.stderr.read()
    for worker in map(int, workers.read_text().split()):
        wait_until(lambda worker=worker: has_ended(worker))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def has_ended(process_id: int) -> bool:
    # A process that nobody has waited for yet still has its identifier: it is a zombie.
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_nnunet_sees_only_the_folders_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/precious")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_extTrainer", "/trainers")
    environment = nnunet_environment(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert environment["nnUNet_raw"] == str(tmp_path / "a")
    assert environment["nnUNet_preprocessed"] == str(tmp_path / "b")
    assert environment["nnUNet_results"] == str(tmp_path / "c")
    assert environment["nnUNet_wandb_enabled"] == "0"
    assert environment["nnUNet_extTrainer"] == "/trainers"


# As nnU-Net 2.8 prints it; numpy 1 wrote the numbers without their type.
EPOCH = """\
2026-01-02 03:04:05.678901:
2026-01-02 03:04:05.678901: Epoch {epoch}
2026-01-02 03:04:05.678901: Current learning rate: 0.00338
2026-01-02 03:04:15.678901: train_loss -0.1234
2026-01-02 03:04:15.678901: val_loss -0.1297
2026-01-02 03:04:15.678901: Pseudo dice {dice}
2026-01-02 03:04:15.678901: Epoch time: 10.0 s
"""


@pytest.mark.parametrize(
    ("dice", "shown"),
    [
        ("[np.float32(0.8697), np.float32(0.1)]", "liver 0.87, tumour 0.10"),
        ("[0.8697, nan]", "liver 0.87, tumour nan"),
        ("[np.float64(1.0), np.float64(nan)]", "liver 1.00, tumour nan"),
        ("[np.float32(1e-04), np.float32(0.0)]", "liver 0.00, tumour 0.00"),
    ],
)
def test_an_epoch_becomes_one_line_with_the_time_left(tmp_path, dice, shown):
    debug_file = tmp_path / "debug.json"
    debug_file.write_text(json.dumps({"num_epochs": "9"}))
    watch = TrainingWatcher(debug_file, labels=["liver", "tumour"])
    lines = [watch(line) for line in EPOCH.format(epoch=2, dice=dice).splitlines(keepends=True)]
    assert [line for line in lines if line] == [
        f"epoch 3 of 9: loss -0.1234, pseudo Dice {shown}, about 1 min 0 s left",
    ]


def test_the_last_epoch_has_no_time_left(tmp_path):
    debug_file = tmp_path / "debug.json"
    debug_file.write_text(json.dumps({"num_epochs": "9"}))
    watch = TrainingWatcher(debug_file, labels=["liver"])
    lines = [watch(line) for line in EPOCH.format(epoch=8, dice="[np.float32(0.5)]").splitlines()]
    assert lines[-1] == "epoch 9 of 9: loss -0.1234, pseudo Dice liver 0.50"


def test_validation_shows_its_case():
    assert TrainingWatcher(None, [])("2026-01-02 03:04:05.678901: predicting phantom_003\n") == (
        "validating on phantom_003"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s")])
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
