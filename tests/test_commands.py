"""Running commands: logs, failures, and that nothing of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_godc.commands import duration, end_of_log, find_command, run_command, run_visibly, small_environment
from nnunet_godc.errors import UserError


def test_the_log_holds_all_output_of_all_runs(tmp_path):
    log = tmp_path / "log.txt"
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    for _ in range(2):
        assert run_command(["python", "-c", script], log=log, environment=os.environ) == 3
    assert sorted(log.read_text().split()) == ["err", "err", "out", "out"]


def test_who_watches_is_asked_while_it_runs_and_once_it_has_ended(tmp_path):
    looks = []
    gate = tmp_path / "gate"
    script = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)\nprint('end')"

    def watch():
        looks.append((tmp_path / "log.txt").read_text())
        gate.touch()

    run_command(["python", "-c", script], log=tmp_path / "log.txt", environment=os.environ, watch=watch)
    assert looks[0] == ""
    assert looks[-1] == "end\n"


def test_a_failing_command_shows_the_end_of_its_log_and_one_sentence(tmp_path, capsys):
    log = tmp_path / "log.txt"
    script = "import sys; [print('line', i) for i in range(100)]; sys.exit('the reason')"
    with pytest.raises(
        UserError, match=r"python ended with exit status 1; .* all that it printed in .*log\.txt"
    ) as error:
        run_visibly(["python", "-c", script], log=log, environment=os.environ)
    assert "\n" not in str(error.value)
    shown = capsys.readouterr().out
    assert "| the reason\n" in shown
    assert "| line 99\n" in shown
    assert "| line 50\n" not in shown
    assert "line 50\n" in log.read_text()


def test_a_command_that_prints_what_is_no_text_is_still_logged(tmp_path):
    log = tmp_path / "log.txt"
    run_command(["python", "-c", r"import os; os.write(1, b'\xff\xfe ok\n')"], log=log, environment=os.environ)
    assert "ok" in end_of_log(log)


def test_a_missing_command_is_named_with_its_remedy():
    with pytest.raises(UserError, match="nnUNetv2_no_such_thing is not to be found; install nnU-Net"):
        find_command("nnUNetv2_no_such_thing")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_running_command_and_its_workers(tmp_path, number, status):
    """As in `nnunet-godc demo`: the command's own worker process must not stay behind either."""
    workers = tmp_path / "workers"
    code = (
        "import os, signal, sys\n"
        # which a shell makes its background jobs ignore
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from nnunet_godc import cli\n"
        "import nnunet_godc.demo\n"
        "from nnunet_godc import commands\n"
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
    environment = small_environment(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert environment["nnUNet_raw"] == str(tmp_path / "a")
    assert environment["nnUNet_preprocessed"] == str(tmp_path / "b")
    assert environment["nnUNet_results"] == str(tmp_path / "c")
    assert environment["nnUNet_wandb_enabled"] == "0"
    assert environment["nnUNet_extTrainer"] == "/trainers"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")]
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
