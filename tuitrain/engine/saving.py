"""When checkpoints are written, while training goes on or waits, and which ones go then; knows neither loop nor files.

A checkpoint is copied to the host's memory, for which training waits, and written from there by another thread, for
which it does not. Where training waits anyway, or memory or disk lack room, it is written from the living tensors.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from tuitrain.engine.checkpoint_writer import CheckpointContent, CheckpointWriter, HostCopies, WriterThread
from tuitrain.engine.failure import is_disk_full
from tuitrain.engine.phase import Emit, Pulse, running_phase
from tuitrain.errors import TuitrainError
from tuitrain.host import read_memory
from tuitrain.runs import events
from tuitrain.runs.checkpoints import prune_checkpoints
from tuitrain.runs.control import Command
from tuitrain.runs.states import list_states, remove_states
from tuitrain.wording import format_bytes

PAUSE_POLL_SECONDS = 0.2
WAIT_POLL_SECONDS = 0.05  # for another thread, which is waited for no longer than it takes
WRITE_PATIENCE_SECONDS = 300.0  # fsync on a slow disk
ROOM_RETRY_SECONDS = 60.0  # a quota that is used up shows in no number but the failed write
MEMORY_KEPT_FREE = 1 / 16  # of the host's memory, for everything else


class Saver:
    """Makes the checkpoints of a run, one at a time, and prunes older ones; a full disk makes it wait for room.

    Called by the thread that trains, which is the only one to emit and to beat.

    Args:
        writer: of this run's checkpoints.
        max_checkpoints: how many stay; None keeps all.
        is_one_state_kept: the state of a new checkpoint replaces older ones.
        total_steps: optimizer steps of the run.
        resumed_from: the checkpoint that the run went on from, which stays until the run is complete.
        emit: takes every Event.
        pulse: beaten while waiting.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        *,
        max_checkpoints: int | None,
        is_one_state_kept: bool,
        total_steps: int,
        resumed_from: Path | None,
        emit: Emit,
        pulse: Pulse,
    ) -> None:
        self.writer = writer
        self.max_checkpoints = max_checkpoints
        self.is_one_state_kept = is_one_state_kept
        self.total_steps = total_steps
        self.resumed_from = resumed_from
        self._emit = emit
        self._pulse = pulse
        self._thread: WriterThread | None = None
        self._copies = HostCopies()  # read by the thread alone, while there is one
        self._began = 0.0
        self._stall_seconds = 0.0
        self._is_stop_heard = False
        self._is_lack_of_memory_told = False

    # A checkpoint's way

    def save(self, content: CheckpointContent, *, in_background: bool) -> None:
        """Begin a checkpoint, when the one before it has come to its end.

        Args:
            content: of living tensors, which may change when this returns.
            in_background: return when it is copied, if memory and disk have room; else when it stands, or is given up.

        Raises:
            TuitrainError: it cannot be written, or the one before could not; but a full disk is waited for.
        """
        self.finish(step=content.step)
        self._began, self._stall_seconds = time.monotonic(), 0.0
        if in_background and self._is_room_on_disk(content) and self._is_room_in_memory(content):
            self._thread = WriterThread(self.writer, self._copied(content))
            self._thread.start()
            self._stall_seconds = time.monotonic() - self._began
        else:
            self._thread = WriterThread(self.writer, content)
            self.finish(step=content.step)

    def collect(self, *, step: int) -> None:
        """See whether the checkpoint that is being written has come to its end; waits for room on a full disk only.

        Args:
            step: completed steps, now.

        Raises:
            TuitrainError: it could not be written.
        """
        if self._thread is not None and self._thread.has_ended:
            self.finish(step=step)

    def finish(self, *, step: int) -> None:
        """Wait until the checkpoint that is being written, if one is, stands; then prune older ones.

        A full disk pauses the run, until there is room or a resume comes. A resume that finds no room either trains on
        without this checkpoint; a stop ends the run without it.

        Args:
            step: completed steps, now.

        Raises:
            TuitrainError: it cannot be written.
        """
        is_last_try = False
        while (thread := self._thread) is not None:
            if not thread.has_ended:
                self._wait_for(thread)
            self._thread = None
            if thread.failure is None:
                self._tell_saved(thread)
            elif not is_disk_full(thread.failure):
                raise thread.failure
            else:
                has_had_room = self._is_room_on_disk(thread.content)
                self._tell_no_room(thread.content, thread.failure)
                if is_last_try or self._is_stop_heard:
                    return
                command = self.wait_for_room(thread.content, step=step, has_had_room=has_had_room)
                if command is Command.STOP:
                    self._is_stop_heard = True
                    return
                is_last_try = command is Command.RESUME
                self._thread = WriterThread(self.writer, thread.content)

    def close(self) -> None:
        """Let the checkpoint that is being written come to its end, whatever has ended the run meanwhile."""
        thread, self._thread = self._thread, None
        if thread is None or thread.ident is None:
            return
        for _ in self._until_end(thread):
            pass
        if thread.failure is None:
            self._tell_saved(thread)
        else:
            self._emit(events.SaveFailed(step=thread.content.step, what=_reason(thread.failure)))

    def _copied(self, content: CheckpointContent) -> CheckpointContent:
        num_bytes, done = sum(tensor.nbytes for tensor in content.tensors), 0
        with running_phase("save", self._emit, self._pulse, can_stop=False) as phase:
            phase.detail = "copy to memory"

            def copied(num_tensor_bytes: int) -> None:
                nonlocal done
                done += num_tensor_bytes
                phase.report(done, num_bytes)

            return self._copies.copy(content, copied)

    def _wait_for(self, thread: WriterThread) -> None:
        """Show how far `thread` is until it has ended; start it, if nobody has."""
        started = time.monotonic()
        if thread.ident is None:
            thread.start()
        num_bytes, num_written = self.writer.num_bytes(thread.content), 0
        with running_phase("save", self._emit, self._pulse, can_stop=False) as phase:
            phase.detail = thread.content.name
            for _ in self._until_end(thread):
                self._pulse.hear()
                if thread.num_written_bytes > num_written:
                    num_written = thread.num_written_bytes
                    phase.report(num_written, num_bytes)
            if thread.failure is not None:
                phase.detail = "not saved"
        self._stall_seconds += max(0.0, thread.ended - started)

    def _until_end(self, thread: WriterThread) -> Iterator[None]:
        """Come by until `thread` has ended; a sign of life is given when bytes have moved, for else a disk may hang."""
        num_moved, is_over = -1, False
        while not is_over:
            thread.join(WAIT_POLL_SECONDS)
            is_over = thread.has_ended
            if thread.num_moved_bytes > num_moved:
                num_moved = thread.num_moved_bytes
                self._pulse.give_sign(patience_seconds=WRITE_PATIENCE_SECONDS)
            yield

    # A full disk

    def wait_for_room(self, content: CheckpointContent, *, step: int, has_had_room: bool) -> Command | None:
        """Pause until the disk has room, or a command ends the pause; gives that command.

        Args:
            content: that is to be written.
            step: completed steps, now.
            has_had_room: the disk seemed to have room when the write failed: try again after a while.
        """
        self._emit(events.Paused(step=step))
        started = time.monotonic()
        while True:
            time.sleep(PAUSE_POLL_SECONDS)
            self._pulse.beat()
            if command := self._pulse.take(Command.RESUME):
                self._emit(events.CommandObeyed(command=command))
                break
            if self._pulse.is_stop_wanted:  # it is obeyed between steps, where all ranks hear of it
                command = Command.STOP
                break
            waited = time.monotonic() - started
            if self._is_room_on_disk(content) and (not has_had_room or waited > ROOM_RETRY_SECONDS):
                break
        self._emit(events.Unpaused(step=step))
        return command

    def _is_room_on_disk(self, content: CheckpointContent) -> bool:
        return self.writer.num_free_bytes() >= self.writer.num_needed_bytes(content)

    def _tell_no_room(self, content: CheckpointContent, failure: BaseException) -> None:
        needed, free = self.writer.num_needed_bytes(content), self.writer.num_free_bytes()
        self._emit(
            events.SaveFailed(
                step=content.step,
                what=f"{_reason(failure)} ({format_bytes(needed)} needed, {format_bytes(free)} free in "
                f"{self.writer.checkpoints_dir})",
                hint="make room; the older checkpoints are untouched",
            )
        )

    def _is_room_in_memory(self, content: CheckpointContent) -> bool:
        """Whether a copy leaves the host enough memory; says so once when it does not."""
        needed, memory = self._copies.num_missing_bytes(content), read_memory()
        if needed <= 0:
            return True
        if memory is not None and memory.available_bytes - needed >= MEMORY_KEPT_FREE * memory.total_bytes:
            return True
        if not self._is_lack_of_memory_told:
            free = "unknown" if memory is None else format_bytes(memory.available_bytes)
            self._warn(
                f"training waits while checkpoints are written: a copy of {format_bytes(needed)} is too much for the "
                f"computer's memory ({free} free)",
                "free memory, or save less often",
            )
            self._is_lack_of_memory_told = True
        return False

    # What follows

    def _tell_saved(self, thread: WriterThread) -> None:
        """Journal a checkpoint that stands, and let go of what it replaces."""
        content = thread.content
        self._emit(
            events.CheckpointSaved(
                step=content.step,
                epoch=content.epoch,
                name=content.name,
                num_bytes=thread.num_published_bytes,
                seconds=thread.ended - self._began,
                stall_seconds=self._stall_seconds,
            )
        )
        self.prune(content.step)
        if self.is_one_state_kept:
            self.keep_one_state(self.writer.checkpoints_dir / content.name)

    def prune(self, step: int) -> None:
        """Delete the checkpoints that max_checkpoints leaves no room for, now that the one of `step` stands."""
        if self.max_checkpoints is None:
            return
        is_complete = step >= self.total_steps  # then nobody goes back to where it was resumed
        protected = {self.resumed_from} if self.resumed_from is not None and not is_complete else set()
        try:
            names = prune_checkpoints(self.writer.checkpoints_dir, self.max_checkpoints, protected=protected)
        except OSError as error:
            self._warn(f"old checkpoints cannot be deleted: {error}", "delete them by hand")
            return
        for name in names:
            self._emit(events.CheckpointPruned(name=name))

    def keep_one_state(self, checkpoint: Path) -> None:
        """Remove all states but that of `checkpoint`, which was verified when it was published."""
        others = [path for path in list_states(self.writer.checkpoints_dir) if path != checkpoint]
        try:
            remove_states(others)
        except OSError as error:
            self._warn(f"older states cannot be deleted: {error}", "delete them by hand")

    def _warn(self, what: str, hint: str) -> None:
        self._emit(events.WarningRaised(what=what, hint=hint))


def _reason(failure: BaseException) -> str:
    return failure.problems[0].what if isinstance(failure, TuitrainError) else str(failure)
