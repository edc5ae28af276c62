"""Trainings that survive interruption, a full disk, a broken checkpoint and bad data, and say what happened."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from filelock import FileLock, Timeout
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.errors import UserError
from nnunet_godc.training.checkpoint import BEST, FINAL, LATEST, bare_network, mismatch, read_checkpoint

LOCK = ".nnunet-godc.training.lock"
BATCHES_NAMED = 3


class SafeMixin(nnUNetTrainer):
    """What can be done from within a trainer so that no interruption costs more than minutes, and no fault is silent.

    - A checkpoint is written beside the one that it replaces and then takes its name: there is never half of one. What
      cannot be written, as on a full disk, ends the training with a sentence, and the former checkpoint stays.
    - `checkpoint_latest` is also written when none was for `save_every_minutes`, and at Ctrl-C and SIGTERM, which
      clusters send before they end a job: then as the last epoch that was completed had left it, so that nothing is
      trained twice or left out.
    - `--c` goes on from the newest checkpoint that is whole, and the log says which were passed over.
    - A checkpoint of another variant is refused before anything of it is loaded.
    - An epoch whose loss is not finite ends the training, with the cases in which it began.
    - A preprocessed case that cannot be read is named.
    - A second training in the same folder is refused.

    Attributes:
        save_every_minutes: nnU-Net by itself writes every 50 epochs, and when the pseudo Dice is the best so far.
    """

    save_every_minutes: ClassVar[float] = 20

    _saved_at: float = 0.0  # by time.monotonic()
    _epoch_end: dict[str, Any] | None = None  # state at the end of the last epoch
    _went_back: bool = False  # from a final checkpoint that is not whole
    _not_finite: list[Any]  # keys of the batches of this epoch whose loss is not finite
    _lock: FileLock | None = None
    _sigterm_before: Any = None

    # Writing

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        path = Path(filename)
        try:
            with atomic_write(path) as partial:
                super().save_checkpoint(str(partial))
                # nnU-Net fixes what a checkpoint holds, so what it does not know of is added to the file that it wrote
                if own := self.own_state():
                    checkpoint = torch.load(partial, map_location="cpu", weights_only=False)
                    torch.save(checkpoint | own, partial)
                _to_disk(partial)
        except (OSError, RuntimeError) as error:
            if not _is_failed_write(error):
                raise
            kept = f"the {path.name} of an earlier epoch is kept" if path.exists() else "there is none of this name yet"
            raise UserError(
                f"{path} could not be written ({_reason(error)}); {kept}. Make room on that disk, then go on with --c."
            ) from error
        self._saved_at = time.monotonic()

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside nnU-Net's own. For subclasses; call `super()`."""
        return {}

    def load_own_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes from a checkpoint what `own_state` gave it. For subclasses; call `super()`.

        Raises:
            UserError: the checkpoint is of a variant that has another state.
        """

    # Reading

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        if not self.was_initialized:
            self.initialize()
        if isinstance(filename_or_checkpoint, str):
            path = self._to_continue_from(Path(filename_or_checkpoint))
            checkpoint = read_checkpoint(path, trusted=True)
            # nnU-Net strips the prefix of a wrapper, too
            weights = {name.removeprefix("module."): value for name, value in checkpoint["network_weights"].items()}
            difference = mismatch(bare_network(self.network).state_dict(), weights)
            if difference is not None:
                raise UserError(
                    f"{path} was trained by {checkpoint['trainer_name']} and does not fit "
                    f"{type(self).__name__} ({difference}); use -tr {checkpoint['trainer_name']}, or start a new "
                    f"training from its weights with `nnunet-godc warm-start`."
                )
            self.load_own_state(checkpoint)
            filename_or_checkpoint = str(path)
        super().load_checkpoint(filename_or_checkpoint)

    def _to_continue_from(self, asked: Path) -> Path:
        """The newest whole checkpoint of this training where nnU-Net asks for the final or the latest one.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        if asked.parent != Path(self.output_folder) or asked.name not in (FINAL, LATEST):
            return asked
        epochs: dict[Path, int] = {}
        broken = []
        for path in (asked, *(asked.with_name(name) for name in (FINAL, LATEST, BEST) if name != asked.name)):
            if not path.exists():
                continue
            try:
                epochs[path] = read_checkpoint(path, trusted=True)["current_epoch"]
            except UserError:
                broken.append(path)
            if path.name == FINAL and path in epochs:  # nothing is newer
                break
        if not epochs:
            raise UserError(
                f"{' and '.join(map(str, broken))} cannot be read, and there is no other checkpoint to go on from; "
                "bring a whole one back, or remove it to train anew."
            )
        newest = max(epochs, key=epochs.__getitem__)
        for path in broken:
            self.print_to_log_file(f"{path.name} is not whole and is passed over.")
        if newest != asked:
            self.print_to_log_file(f"Going on from {newest.name}, of epoch {epochs[newest]}.")
        self._went_back = asked.name == FINAL and newest != asked
        return newest

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if self._went_back and self.current_epoch < self.num_epochs:
            raise UserError(
                f"{Path(self.output_folder, FINAL)} is not whole, and an earlier checkpoint is not what --val is to "
                "validate; finish the training with --c."
            )
        with _naming_unreadable_cases(self):
            super().perform_actual_validation(save_probabilities)

    # Training

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            self._lock = self._locked()
        super().on_train_start()
        self._saved_at = time.monotonic()
        # Only now: the processes that load data have been forked, and shall end by SIGTERM at once.
        if threading.current_thread() is threading.main_thread():
            self._sigterm_before = signal.signal(signal.SIGTERM, _terminate)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._not_finite = []

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = super().train_step(batch)
        if not np.isfinite(result["loss"]).all():
            self._not_finite.append(batch.get("keys"))
        return result

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        loss = self.logger.get_value("train_losses", step=-1)
        if not np.isfinite(loss):
            named = "; ".join(
                ", ".join(map(str, keys)) for keys in self._not_finite[:BATCHES_NAMED] if keys is not None
            )
            where = f"it began in batches of these cases: {named}" if named else "it began on another GPU"
            raise UserError(
                f"the loss of epoch {self.current_epoch} is {loss}, so the training ends; {where}. Look for NaN, "
                "infinite or extreme voxels in them. Checkpoints of earlier epochs are kept, and --c goes on from them."
            )

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank != 0 or self.disable_checkpointing or self.current_epoch >= self.num_epochs:
            return
        self._epoch_end = {
            "network": _on_cpu(bare_network(self.network).state_dict()),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "scaler": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "own": _on_cpu(self.own_state()),
            "epoch": self.current_epoch,
        }
        if time.monotonic() - self._saved_at > 60 * self.save_every_minutes:
            self._save_latest()

    def on_train_end(self) -> None:
        self._epoch_end = None
        super().on_train_end()

    def run_training(self) -> None:
        try:
            with _naming_unreadable_cases(self):
                super().run_training()
        except KeyboardInterrupt as interrupt:
            self._save_epoch_end()
            for loader in (self.dataloader_train, self.dataloader_val):
                if isinstance(loader, (NonDetMultiThreadedAugmenter, MultiThreadedAugmenter)):
                    loader._finish()
            number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            raise SystemExit(128 + number) from None
        finally:
            if self._sigterm_before is not None:
                signal.signal(signal.SIGTERM, self._sigterm_before)
            if self._lock is not None:
                with contextlib.suppress(OSError):  # Windows removes no file that is open
                    Path(self._lock.lock_file).unlink()
                self._lock.release()

    def _save_epoch_end(self) -> None:
        """Writes the state that the last completed epoch had left, if it is not written yet."""
        if self._epoch_end is None:
            return
        bare_network(self.network).load_state_dict(self._epoch_end["network"])
        self.optimizer.load_state_dict(self._epoch_end["optimizer"])
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(self._epoch_end["scaler"])
        self.load_own_state(self._epoch_end["own"])
        self.current_epoch = self._epoch_end["epoch"]
        self._save_latest()
        self.print_to_log_file(f"Interrupted: {LATEST} holds epoch {self.current_epoch - 1}; --c goes on from there.")

    def _save_latest(self) -> None:
        # nnU-Net counts an epoch up before this is called, and once more in the checkpoint
        self.current_epoch -= 1
        self.save_checkpoint(str(Path(self.output_folder, LATEST)))
        self.current_epoch += 1

    def _locked(self) -> FileLock | None:
        lock = FileLock(Path(self.output_folder, LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another training runs in {self.output_folder}; wait for its end, or end it before this one."
            ) from None
        except (NotImplementedError, OSError):  # as on some clusters' file systems
            return None
        return lock


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a training as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut short what the first one saves
    raise _Terminated


def _on_cpu(state: Any) -> Any:
    """A copy of a state dict, its tensors in main memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(value) for value in state)
    return state


def _to_disk(path: Path) -> None:
    """Returns when the content is on the disk: a name must not outlive it where power fails."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_failed_write(error: Exception) -> bool:
    # PyTorch's writer has no error number: "PytorchStreamWriter failed writing file", "unexpected pos"
    return isinstance(error, OSError) or any(sign in str(error) for sign in ("StreamWriter", "unexpected pos"))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error.__context__, OSError) and error.__context__.strerror:
        return error.__context__.strerror
    return str(error).splitlines()[0]


@contextlib.contextmanager
def _naming_unreadable_cases(trainer: nnUNetTrainer) -> Iterator[None]:
    """Where data could not be loaded within, finds the case, which nnU-Net's worker processes do not tell.

    Raises:
        UserError: with the first case that cannot be read.
    """
    try:
        yield
    except Exception as error:
        in_here = any(frame.name == "load_case" for frame in traceback.extract_tb(error.__traceback__))
        # what nnU-Net's augmenters say of a worker process that has died
        in_worker = isinstance(error, RuntimeError) and re.search("background workers|abort_event", str(error))
        if in_here or in_worker:
            for dataset in trainer.get_tr_and_val_datasets():
                for case in dataset.identifiers:
                    try:
                        data, segmentation, previous, _ = dataset.load_case(case)
                        for array in (data, segmentation, *(() if previous is None else (previous,))):
                            np.asarray(array[:])
                    except Exception as unreadable:
                        raise UserError(
                            f"the preprocessed case {case} in {dataset.source_folder} cannot be read "
                            f"({_reason(unreadable)}); preprocess the dataset again with nnUNetv2_preprocess."
                        ) from error
        raise
