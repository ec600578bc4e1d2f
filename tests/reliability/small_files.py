"""Small files that a process writes again and again until it is killed, and what can be read of them afterwards.

As a program, `python -m tests.reliability.small_files writers|appends FOLDER KILLS`: the kills, spread over all
writers, or all of them of a process that appends to a journal.
"""

import itertools
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.saving import find_violations, save
from tuitrain.config.files import load_config
from tuitrain.config.presets import find_preset, list_presets
from tuitrain.errors import TuitrainError
from tuitrain.runs.checkpoints import list_checkpoints, pin_checkpoint, prune_checkpoints, unpin_checkpoint
from tuitrain.runs.control import Command, poll_control_dir, send_command
from tuitrain.runs.events import EpochFinished
from tuitrain.runs.heartbeat import Heartbeat, read_beat
from tuitrain.runs.journal import Journal, JournalTail, read_journal
from tuitrain.runs.run import Run
from tuitrain.tui.document import ConfigDocument

LONGEST_SECONDS = 0.03
"""That a writer may work until it is killed."""
NUM_CONTENTS = 4
"""That each file takes turns with."""


@dataclass(frozen=True)
class Writer:
    """What writes one kind of small files.

    Args:
        name: of the kind.
        write: writes content number n over what was there, or beside it.
        find_damage: what cannot be read as it was written, in words; "" when all can.
    """

    name: str
    write: Callable[[int], object]
    find_damage: Callable[[], str]


def build_writers(folder: Path) -> list[Writer]:
    """One of each kind, at work in `folder`."""
    os.environ["XDG_CONFIG_HOME"] = str(folder / "xdg")
    run = Run.create(folder / "runs", config_yaml="", config_json="{}")
    return [
        _config_of_a_run(run),
        _config_file(folder),
        _preset(),
        _cache(folder),
        _commands(run),
        _heartbeat(run),
        _pin(run),
        _checkpoints(run),
        _journal(run),
        _lock(run),
    ]


def _config_of_a_run(run: Run) -> Writer:
    yaml = [f"seed: {number}\n" * 3000 for number in range(NUM_CONTENTS)]
    values = [json.dumps({"seed": [number] * 10_000}) for number in range(NUM_CONTENTS)]

    def find_damage() -> str:
        if run.config_path.read_text() not in yaml:
            return "config.yaml is torn"
        return "" if run.config_json_path.read_text() in values else "config.json is torn"

    return Writer(
        "config of a run",
        lambda n: run.write_config(config_yaml=yaml[n % NUM_CONTENTS], config_json=values[n % NUM_CONTENTS]),
        find_damage,
    )


def _documents() -> list[ConfigDocument]:
    documents = [ConfigDocument.open("demo") for _ in range(NUM_CONTENTS)]
    for number, document in enumerate(documents):
        document.set("seed", str(number))
    return documents


def _config_file(folder: Path) -> Writer:
    path = folder / "mine.yaml"
    documents = _documents()
    configs = [document.config for document in documents]
    return Writer(
        "config file",
        lambda n: documents[n % NUM_CONTENTS].save(path, may_replace=True),
        lambda: "" if load_config(path) in configs else "mine.yaml is torn",
    )


def _preset() -> Writer:
    documents = _documents()
    configs = [document.config for document in documents]
    ours = {preset.name for preset in list_presets()}

    def find_damage() -> str:
        if strange := {preset.name for preset in list_presets()} - ours - {"mine"}:
            return f"there are presets named {strange}"
        return "" if load_config(find_preset("mine").path) in configs else "the preset is torn"

    return Writer("preset", lambda n: documents[n % NUM_CONTENTS].save_as_preset("mine", may_replace=True), find_damage)


def _cache(folder: Path) -> Writer:
    import torch  # 2 s that the appends do without

    from tuitrain.data.cache import TensorCache

    cache = TensorCache(folder / "cache")
    key = "0123456789abcdef" * 4
    contents = [{"latents": torch.full((4, 32, 32), float(number))} for number in range(NUM_CONTENTS)]

    def find_damage() -> str:
        found = cache.get(key)
        is_whole = found is not None and any(torch.equal(found["latents"], one["latents"]) for one in contents)
        return "" if is_whole else "the entry is torn"

    return Writer("cache", lambda n: cache.put(key, contents[n % NUM_CONTENTS]), find_damage)


def _commands(run: Run) -> Writer:
    def find_damage() -> str:
        num = sum(path.suffix == ".command" and path.name[0] != "." for path in run.control_dir.iterdir())
        read = sum(poll_control_dir(run.control_dir) is Command.SAVE for _ in range(num))
        return "" if read == num else f"{read} of {num} commands can be read"

    return Writer("commands", lambda n: send_command(run.control_dir, Command.SAVE), find_damage)


def _heartbeat(run: Run) -> Writer:
    def write(number: int) -> None:
        Heartbeat(run.heartbeat_path).beat(float(10 ** (number % 6)))

    def find_damage() -> str:
        beat = read_beat(run.heartbeat_path)
        is_whole = beat is not None and beat.patience_seconds in {float(10**power) for power in range(6)}
        return "" if is_whole else f"the heartbeat is {run.heartbeat_path.read_bytes()!r}"

    return Writer("heartbeat", write, find_damage)


def _pin(run: Run) -> Writer:
    path = save(run, 0, num_bytes=100)

    def find_damage() -> str:
        (first, *_) = list_checkpoints(run.checkpoints_dir)
        return "" if isinstance(first.is_pinned, bool) and first.path == path else "the checkpoint is gone"

    return Writer("pin", lambda n: (unpin_checkpoint if n % 2 else pin_checkpoint)(path), find_damage)


def _checkpoints(run: Run) -> Writer:
    other = Run.create(run.path.parent, config_yaml="", config_json="{}")
    save(other, 0, num_bytes=100)

    def write(_number: int) -> None:
        save(other, list_checkpoints(other.checkpoints_dir)[-1].manifest.step + 1, num_bytes=100)
        prune_checkpoints(other.checkpoints_dir, 2)

    return Writer("manifests", write, lambda: "; ".join(find_violations(other, oldest_step=0)))


def _journal(run: Run) -> Writer:
    def write(number: int) -> None:
        journal = Journal(run.journal_path)
        for step in range(100):
            journal.append(EpochFinished(epoch=number, step=step))
        journal.close()

    def find_damage() -> str:
        write(0)  # the next writer closes a torn line
        events = read_journal(run.journal_path)
        strange = [event for event in events if not isinstance(event, EpochFinished)]
        return f"{len(strange)} lines of the journal cannot be read: {strange[:3]}" if len(strange) else ""

    return Writer("journal", write, find_damage)


def _lock(run: Run) -> Writer:
    def write(_number: int) -> None:
        with run.lock():
            pass

    def find_damage() -> str:
        if holder := run.lock_holder():
            return f"{holder} holds the run"
        write(0)
        return ""

    return Writer("lock", write, find_damage)


def kill_writers(folder: Path, num_kills: int) -> str:
    """Kill each writer in turn at a time drawn at random.

    Returns:
        "unreadable / kills", and what could not be read.
    """
    writers = build_writers(folder)
    for writer in writers:
        writer.write(1)
        assert writer.find_damage() == "", writer.name
    draw = random.Random(0)
    damages = []
    for index in range(num_kills):
        writer = writers[index % len(writers)]
        child = os.fork()
        if child == 0:
            for number in itertools.count():
                writer.write(number)
        time.sleep(draw.uniform(0, LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            damages.append(f"{writer.name}: it ended by itself")
        try:
            damage = writer.find_damage()
        except (TuitrainError, OSError, ValueError) as error:
            damage = repr(error)
        if damage:
            damages.append(f"{writer.name}: {damage}")
    return f"{len(damages)} / {num_kills} over {', '.join(writer.name for writer in writers)} {damages}"


def kill_appends(folder: Path, num_kills: int) -> str:
    """Kill a process that appends events to one journal, again and again.

    Returns:
        "lost / appended", of those whose append had returned, and the lines that a kill tore: a signal ends a write
        between two pages.
    """
    path = folder / "journal.jsonl"
    appended = mmap.mmap(-1, 8)  # shared with the children: how many appends have returned
    draw = random.Random(0)
    num_lost = expected = 0
    for _ in range(num_kills):
        tail = JournalTail(path, offset=path.stat().st_size if path.exists() else 0)
        struct.pack_into("q", appended, 0, 0)
        child = os.fork()
        if child == 0:
            journal = Journal(path)
            for step in itertools.count(1):
                journal.append(EpochFinished(epoch=0, step=step))
                struct.pack_into("q", appended, 0, step)
        time.sleep(draw.uniform(0, LONGEST_SECONDS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (num_appended,) = struct.unpack_from("q", appended)
        expected += num_appended
        steps = [event.step for event in tail.read_new() if isinstance(event, EpochFinished)]
        num_lost += len(set(range(1, num_appended + 1)) - set(steps))
    num_torn = sum(not isinstance(event, EpochFinished) for event in JournalTail(path).read_new())
    return f"{num_lost} / {expected}, {num_torn} torn lines passed over in {num_kills} kills"


if __name__ == "__main__":
    kill = {"writers": kill_writers, "appends": kill_appends}[sys.argv[1]]
    sys.stdout.write(kill(Path(sys.argv[2]), int(sys.argv[3])) + "\n")
