"""What happens to a training that is interrupted, has no room, finds a broken checkpoint, or is given bad data."""

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_godc import trainers
from nnunet_godc.errors import UserError
from nnunet_godc.losses import GODCConfig
from nnunet_godc.training import GODCMixin, SafeMixin, ScheduleMixin
from nnunet_godc.training.checkpoint import BEST, FINAL, LATEST, read_checkpoint
from nnunet_godc.training.safe import LOCK

MakeTrainer = Callable[..., Any]
KILLS = 12
KILLS_OF_TRAININGS = 20
EPOCHS_WITH_KILLS = 120


class Short(ScheduleMixin, SafeMixin, nnUNetTrainer):
    """Six epochs of two steps on batches that `on_batch` may change."""

    epochs = 6
    iterations_per_epoch = 2
    validation_iterations_per_epoch = 1
    on_batch: Callable[["Short", dict[str, Any]], dict[str, Any]] = staticmethod(lambda trainer, batch: batch)
    make_batch: Callable[["Short"], dict[str, Any]]

    def get_dataloaders(self) -> tuple[Any, Any]:
        def batches() -> Iterator[dict[str, Any]]:
            while True:
                batch = {**type(self).make_batch(self), "keys": ["case_7", "case_9"]}
                yield type(self).on_batch(self, batch)

        return batches(), type(self).validation_batches(self)

    def validation_batches(self) -> Iterator[dict[str, Any]]:
        while True:
            yield type(self).make_batch(self)

    def plot_network_architecture(self) -> None:
        pass


class ShortRunning(Short, GODCMixin):
    godc = GODCConfig(normalization="running")


class OftenSaved(ShortRunning):
    epochs = EPOCHS_WITH_KILLS

    def set_hyperparameters(self) -> None:
        super().set_hyperparameters()
        self.save_every = 1


def go_on(trainer: nnUNetTrainer) -> None:
    """What `--c` does."""
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    trainer.run_training()


def train_until_alarm(
    arguments: dict[str, Any], batch: dict[str, Any], environment: dict[str, str], *, batches: int, seconds: float
) -> None:
    """Goes on with a training in a process of its own, which ends by a signal so long after so many batches."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a process as SIGKILL does
    drawn = count(1)

    def on_batch(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
        if next(drawn) == batches:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        return batch

    members = {"make_batch": lambda trainer: batch, "on_batch": staticmethod(on_batch)}
    MetaLogger.plot_progress_png = lambda *_: None
    go_on(type(OftenSaved.__name__, (OftenSaved,), members)(**arguments))


@pytest.fixture
def make_short(
    make_trainer: MakeTrainer, random_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> MakeTrainer:
    """Makes a trainer that trains on random batches; `on_batch` is called with each."""
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda *_: None)  # takes longer than all else here

    def make(kind: type[Short] = Short, **members: Any) -> Any:
        members = {name: staticmethod(value) if callable(value) else value for name, value in members.items()}
        made = type(kind.__name__, (kind,), {"make_batch": staticmethod(random_batch), **members})
        trainer = make_trainer(made)
        (Path(trainer.preprocessed_dataset_folder_base) / "dataset_fingerprint.json").write_text("{}")
        return trainer

    return make


def epoch_of(path: Path) -> int:
    """How many epochs a checkpoint has behind it."""
    epochs: int = read_checkpoint(path)["current_epoch"]
    return epochs


def log_of(trainer: nnUNetTrainer) -> str:
    return Path(trainer.log_file).read_text()


def folder_of(trainer: nnUNetTrainer) -> Path:
    return Path(trainer.output_folder)


class TestWriting:
    def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(self, make_short: MakeTrainer) -> None:
        trainer = make_short(ShortRunning)
        trainer.initialize()
        path = folder_of(trainer) / LATEST
        trainer.save_checkpoint(str(path))
        random = np.random.default_rng(0)
        for _ in range(KILLS):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(1)
                while True:
                    trainer.save_checkpoint(str(path))
            time.sleep(random.uniform(0.05, 0.15))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert read_checkpoint(path)["godc_state"]["batches_seen"] == 0
        make_short(ShortRunning).load_checkpoint(str(path))

    def test_a_full_disk_ends_the_training_and_keeps_the_former_checkpoint(self, make_short: MakeTrainer) -> None:
        trainer = make_short()
        trainer.initialize()
        path = folder_of(trainer) / LATEST
        trainer.save_checkpoint(str(path))
        before = path.read_bytes()
        child = os.fork()
        if child == 0:
            # as a full disk does, the system refuses what goes beyond
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
            try:
                trainer.save_checkpoint(str(path))
            except UserError as error:
                told = f"{path} could not be written" in str(error) and "is kept" in str(error) and "--c" in str(error)
                os._exit(0 if told else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert path.read_bytes() == before
        assert not list(path.parent.glob(".*.part"))

    def test_no_space_is_told_in_the_systems_words(
        self, make_short: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        trainer = make_short()
        trainer.initialize()
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"No space left on device\); there is none of this name yet"):
            trainer.save_checkpoint(str(folder_of(trainer) / FINAL))

    def test_other_faults_are_not_taken_for_a_full_disk(
        self, make_short: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("a bug")

        trainer = make_short()
        trainer.initialize()
        monkeypatch.setattr(torch, "save", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            trainer.save_checkpoint(str(folder_of(trainer) / FINAL))

    @pytest.mark.parametrize(("minutes", "saves"), [(0, 5), (20, 0)])
    def test_the_latest_checkpoint_is_written_by_time_too(
        self, make_short: MakeTrainer, monkeypatch: pytest.MonkeyPatch, minutes: float, saves: int
    ) -> None:
        trainer = make_short(save_every_minutes=minutes)
        epochs = []
        save = trainer._save_latest
        monkeypatch.setattr(
            trainer, "_save_latest", lambda: (save(), epochs.append(epoch_of(folder_of(trainer) / LATEST)))
        )
        trainer.run_training()
        assert epochs == list(range(1, 6))[:saves]
        assert epoch_of(folder_of(trainer) / FINAL) == 6
        assert not (folder_of(trainer) / LATEST).exists()


class TestInterruption:
    """In the middle of the fourth epoch."""

    @staticmethod
    def at_fourth(number: int) -> Callable[[Short, dict[str, Any]], dict[str, Any]]:
        def on_batch(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            trainer.drawn = getattr(trainer, "drawn", 0) + 1
            if trainer.drawn == 8:
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            return batch

        return on_batch

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("kind", [Short, ShortRunning])
    def test_what_the_last_epoch_left_is_saved_and_trained_on(
        self, make_short: MakeTrainer, number: int, kind: type[Short]
    ) -> None:
        handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
        trainer = make_short(kind, on_batch=self.at_fourth(number))
        try:
            torch.manual_seed(0)
            with pytest.raises(SystemExit) as end:
                trainer.run_training()
        finally:
            signal.signal(signal.SIGINT, handlers[1])
        assert end.value.code == 128 + number
        assert signal.getsignal(signal.SIGTERM) == handlers[0]
        assert epoch_of(folder_of(trainer) / LATEST) == 3

        again = make_short(kind)
        again.load_checkpoint(str(folder_of(again) / LATEST))
        assert again.current_epoch == 3
        again.run_training()
        whole = make_short(kind)
        (folder_of(whole) / FINAL).rename(folder_of(whole) / "interrupted.pth")
        torch.manual_seed(0)
        whole.run_training()
        one, other = (read_checkpoint(folder_of(whole) / name) for name in ("interrupted.pth", FINAL))
        assert [len(values) for values in one["logging"].values()] == [6] * len(one["logging"])
        for name, weight in other["network_weights"].items():
            assert weight.equal(one["network_weights"][name])

    def test_nothing_is_saved_where_no_epoch_is_done(self, make_short: MakeTrainer) -> None:
        def at_once(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            return batch

        trainer = make_short(on_batch=at_once)
        with pytest.raises(SystemExit):
            trainer.run_training()
        assert not list(folder_of(trainer).glob("*.pth"))

    def test_a_second_training_in_the_folder_is_refused(self, make_short: MakeTrainer) -> None:
        second = make_short()

        def start_another(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            with pytest.raises(UserError, match="another training runs in"):
                second.run_training()
            return batch

        first = make_short(on_batch=start_another)
        first.run_training()
        assert epoch_of(folder_of(first) / FINAL) == 6
        second.run_training()  # nobody trains there any more
        assert not (folder_of(first) / LOCK).exists()

    @pytest.mark.slow
    def test_a_training_killed_twenty_times_ends_with_a_history_without_a_hole(self, make_short: MakeTrainer) -> None:
        # Forked from a process that has never trained: autograd refuses to work in a child of one that has.
        clean = multiprocessing.get_context("forkserver")
        clean.set_forkserver_preload(["nnunetv2.run.run_training", "nnunet_godc.training"])
        random = np.random.default_rng(0)
        first = make_short(OftenSaved)
        first.initialize()
        arguments = {**first.my_init_kwargs, "plans": {**first.my_init_kwargs["plans"], "continue_training": False}}
        batch, latest = type(first).make_batch(first), folder_of(first) / LATEST
        reached = []
        for _ in range(KILLS_OF_TRAININGS):
            child = clean.Process(
                target=train_until_alarm,
                args=(arguments, batch, dict(os.environ)),
                kwargs={"batches": int(random.integers(1, 12)), "seconds": random.uniform(0.001, 0.05)},
            )
            child.start()
            child.join()
            assert child.exitcode == -signal.SIGALRM
            reached.append(epoch_of(latest) if latest.exists() else 0)
        assert reached == sorted(reached)
        assert 5 < reached[-1] < EPOCHS_WITH_KILLS
        trainer = make_short(OftenSaved)
        go_on(trainer)
        trained = read_checkpoint(folder_of(trainer) / FINAL)
        assert trained["current_epoch"] == EPOCHS_WITH_KILLS
        lengths = {len(values) for values in trained["logging"].values()}
        assert lengths == {EPOCHS_WITH_KILLS}
        assert np.isfinite(trained["logging"]["train_losses"]).all()
        starts = trained["logging"]["epoch_start_timestamps"]
        assert starts == sorted(starts)


class TestContinuing:
    def train(self, make_short: MakeTrainer, names: dict[str, int]) -> Path:
        """Leaves checkpoints with so many epochs behind them; returns their folder."""
        trainer = make_short()
        trainer.initialize()
        for name, epochs in names.items():
            trainer.current_epoch = epochs - 1
            trainer.save_checkpoint(str(folder_of(trainer) / name))
        return folder_of(trainer)

    def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_told(self, make_short: MakeTrainer) -> None:
        folder = self.train(make_short, {FINAL: 6, LATEST: 4, BEST: 5})
        whole = (folder / FINAL).read_bytes()
        (folder / FINAL).write_bytes(whole[: len(whole) // 2])
        trainer = make_short()
        trainer.load_checkpoint(str(folder / FINAL))
        assert trainer.current_epoch == 5
        assert f"{FINAL} is not whole and is passed over" in log_of(trainer)
        assert f"Going on from {BEST}, of epoch 5" in log_of(trainer)

    def test_a_whole_final_checkpoint_is_taken_as_it_is(self, make_short: MakeTrainer) -> None:
        folder = self.train(make_short, {FINAL: 6, BEST: 5})
        (folder / BEST).write_bytes(b"half")
        trainer = make_short()
        trainer.load_checkpoint(str(folder / FINAL))
        assert trainer.current_epoch == 6
        assert "passed over" not in log_of(trainer)

    def test_the_best_checkpoint_is_loaded_where_it_is_asked_for(self, make_short: MakeTrainer) -> None:
        folder = self.train(make_short, {FINAL: 6, BEST: 3})
        trainer = make_short()
        trainer.load_checkpoint(str(folder / BEST))
        assert trainer.current_epoch == 3

    def test_where_none_is_whole_all_are_named(self, make_short: MakeTrainer) -> None:
        folder = self.train(make_short, {LATEST: 4, BEST: 5})
        for name in (LATEST, BEST):
            (folder / name).write_bytes(b"half")
        with pytest.raises(UserError, match=f"{LATEST} and .*{BEST} cannot be read") as error:
            make_short().load_checkpoint(str(folder / LATEST))
        assert "remove it to train anew" in str(error.value)

    def test_validation_does_not_take_an_unfinished_training_for_a_finished_one(self, make_short: MakeTrainer) -> None:
        folder = self.train(make_short, {FINAL: 6, BEST: 5})
        (folder / FINAL).write_bytes(b"half")
        trainer = make_short()
        trainer.load_checkpoint(str(folder / FINAL))
        with pytest.raises(UserError, match="finish the training with --c"):
            trainer.perform_actual_validation()

    @pytest.mark.parametrize(("saved", "loading"), [(Short, ShortRunning), (ShortRunning, Short)])
    def test_the_running_mean_is_neither_made_up_nor_dropped(
        self, make_short: MakeTrainer, saved: type[Short], loading: type[Short], tmp_path: Path
    ) -> None:
        class ShortMean(Short, GODCMixin):
            """Without a state of its own, and able to see another's."""

        trainer = make_short(ShortMean if saved is Short else saved)
        trainer.initialize()
        trainer.save_checkpoint(str(tmp_path / "other.pth"))
        with pytest.raises(UserError, match="running mean of unions"):
            make_short(ShortMean if loading is Short else loading).load_checkpoint(str(tmp_path / "other.pth"))


class TestData:
    def test_a_loss_that_is_not_finite_ends_the_training_with_the_cases(self, make_short: MakeTrainer) -> None:
        def spoil(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            trainer.drawn = getattr(trainer, "drawn", 0) + 1
            if trainer.drawn == 6:
                batch["data"][0, 0, 0, 0, 0] = float("nan")
            return batch

        trainer = make_short(on_batch=spoil, save_every_minutes=0)
        with pytest.raises(UserError, match=r"the loss of epoch 2 is nan.* case_7, case_9\. Look for NaN"):
            trainer.run_training()
        assert epoch_of(folder_of(trainer) / LATEST) == 2
        weights = read_checkpoint(folder_of(trainer) / LATEST)["network_weights"].values()
        assert all(weight.isfinite().all() for weight in weights)

    @pytest.mark.parametrize("message", ["One or more background workers are no longer alive. Exiting.", None])
    def test_a_preprocessed_case_that_cannot_be_read_is_named(
        self, make_short: MakeTrainer, message: str | None
    ) -> None:
        class Dataset:
            identifiers = ("whole", "half")
            source_folder = "/data/preprocessed"

            def load_case(self, name: str) -> tuple[Any, ...]:
                if name == "half":
                    raise RuntimeError("blosc2 cannot open it")
                return np.zeros((1, 2)), np.zeros((1, 2)), None, {}

        def fail(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            if message is None:
                Dataset().load_case("half")
            raise RuntimeError(message)

        trainer = make_short(on_batch=fail)
        trainer.get_tr_and_val_datasets = lambda: (Dataset(), Dataset())
        with pytest.raises(
            UserError, match=r"case half in /data/preprocessed cannot be read \(blosc2 cannot open it\)"
        ):
            trainer.run_training()

    def test_other_faults_stay_what_they_are(self, make_short: MakeTrainer) -> None:
        def fail(trainer: Short, batch: dict[str, Any]) -> dict[str, Any]:
            raise RuntimeError("CUDA out of memory")

        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            make_short(on_batch=fail).run_training()


def test_stock_nnunet_can_be_made_safe(make_trainer: MakeTrainer) -> None:
    assert trainers.nnUNetTrainerSafe.__mro__[1:3] == (SafeMixin, nnUNetTrainer)
    trainer = make_trainer(trainers.nnUNetTrainerSafe)
    trainer.initialize()
    assert type(trainer.loss.loss).__name__ == "DC_and_CE_loss"
