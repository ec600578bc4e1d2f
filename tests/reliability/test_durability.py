"""Whatever kills, fills or corrupts: what stands under a checkpoint's name is whole, and damage is found."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.engine.harness import of_kind, small_config, train, train_well, write_pictures
from tests.reliability.figures import tell_figure
from tests.reliability.saving import (
    KEEP,
    OPTIMIZER,
    WEIGHTS,
    digest,
    find_violations,
    leftovers,
    save,
    start_and_save,
)
from tuitrain.commands.program import app
from tuitrain.config.schema import TrainConfig
from tuitrain.engine.launch import train_run
from tuitrain.errors import CheckpointError, TuitrainError
from tuitrain.runs import events
from tuitrain.runs.checkpoints import (
    list_checkpoints,
    pin_checkpoint,
    prune_checkpoints,
    verify_checkpoint,
)
from tuitrain.runs.control import Command
from tuitrain.runs.journal import JournalTail
from tuitrain.runs.run import Run
from tuitrain.runs.states import STATE_DIR, STATE_NAME
from tuitrain.wording import describe


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "runs")


def new_run(folder: Path) -> Run:
    return Run.create(folder, config_yaml="", config_json="{}")


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 2)


# ------------------------------------------------------------------------------------------------------ killed anywhere


def start(run: Run, *, crash_at: int = 0) -> int:
    """The exit status of a process that saves in `run`, and dies at a crash point."""
    command = [sys.executable, "-m", "tests.reliability.saving", str(run.path)]
    return subprocess.run(command, env={**os.environ, "TUITRAIN_CRASH_AT": str(crash_at)}, check=False).returncode


def kill_at_every(tmp_path: Path, stride: int) -> None:
    template = new_run(tmp_path / "template")
    for step in (1, 2, 3):
        save(template, step)
    tried, failures = 0, []
    for point in range(1, 1000, stride):
        run = Run(shutil.copytree(template.path, tmp_path / "run"))
        exit_code = start(run, crash_at=point)
        if exit_code == 0:
            break
        assert exit_code == 137
        tried += 1
        violations = find_violations(run, oldest_step=3)
        start_and_save(run)  # the next start
        violations += [f"left: {name}" for name in leftovers(run)]
        violations += [f"{len(found)} are kept"] if len(found := list_checkpoints(run.checkpoints_dir)) != KEEP else []
        violations += find_violations(run, oldest_step=4)
        failures += [f"point {point}: {violation}" for violation in violations]
        shutil.rmtree(run.path)
    tell_figure(f"kills survived / tried: {tried - len({f.split(':')[0] for f in failures})} / {tried}")
    assert failures == []
    assert tried > 40 // stride


def test_a_kill_at_some_points_of_a_save_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    kill_at_every(tmp_path, 9)


@pytest.mark.slow
def test_a_kill_at_every_point_of_a_save_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    kill_at_every(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_engine_killed_anywhere_in_a_save_loses_nothing(tmp_path: Path, tiny_sdxl: Path, jsonl: Path) -> None:
    command = [sys.executable, "-m", "tests.reliability.saving", *map(str, (tmp_path, tiny_sdxl, jsonl, 200))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    tell_figure(f"kills of the engine survived / tried: {told}")
    survived, tried = map(int, re.findall(r"\d+", told)[:2])
    assert survived == tried > 200


def test_only_the_leftovers_of_the_run_itself_are_removed(run: Run, tmp_path: Path) -> None:
    saved = save(run, 1)
    prompt = run.validation_dir / "epoch_00000000-step_00000001" / "prompt_0000"
    prompt.mkdir(parents=True)
    name = "checkpoint-epoch_00000000-step_00000002"
    ours = run.checkpoints_dir / f".tmp-0123abcd-{name}"
    (ours / "unet").mkdir(parents=True)
    foreign = [
        run.checkpoints_dir / ".tmp-mine",
        run.checkpoints_dir / ".tmp-0123abcd-notes",
        run.checkpoints_dir / f".tmp-0123abcd-{name}-copy",
        run.checkpoints_dir / f".tmp-0123ABCD-{name}",
        run.path / f".tmp-0123abcd-{name}",
        run.path / ".tmp-0123abcd-config.toml",
        run.path / ".tmp-0123abcd-journal.jsonl",
        run.path / ".trash",
        run.control_dir / "notes",
        saved / ".tmp-0123abcd-states",
        saved / "unet" / f".tmp-0123abcd-{STATE_DIR}",
        prompt / ".tmp-0123abcd-cover.jpg",
        prompt / ".tmp-0123abcd-0001.jpg",  # a folder, where pictures are files
        run.path.parent / f".tmp-0123abcd-{name}",
    ]
    for path in foreign:
        path.mkdir()
    if os.geteuid() == 0:
        anothers = run.path / ".tmp-89abcdef-config.json"
        anothers.touch()
        os.chown(anothers, 12345, -1)
        foreign.append(anothers)
    link = run.checkpoints_dir / f".tmp-76543210-{name}"
    link.symlink_to(tmp_path)
    foreign.append(link)
    own = [".tmp-0123abcd-config.yaml", f"checkpoints/{ours.name}", f"validation/{prompt.parent.name}/prompt_0000/"]
    own[2] += ".tmp-0123abcd-0000.jpg"
    (run.path / own[0]).touch()
    (run.path / own[2]).touch()
    with run.lock():
        assert sorted(run.remove_leftovers()) == own
    num_deleted = sum(not os.path.lexists(path) for path in foreign)
    tell_figure(f"foreign deletions / look-alikes: {num_deleted} / {len(foreign)}")
    assert num_deleted == 0


def test_while_a_process_trains_a_run_its_leftovers_are_not_touched(run: Run, tiny_sdxl: Path, jsonl: Path) -> None:
    leftover = run.checkpoints_dir / ".tmp-0123abcd-checkpoint-epoch_00000000-step_00000002"
    leftover.mkdir()
    config = small_config(run.path.parent, tiny_sdxl, jsonl)
    with run.lock(), pytest.raises(TuitrainError, match="is being trained by process"):
        train_run(config, run, lambda: None)
    assert leftover.is_dir()


# ---------------------------------------------------------------------------------------------------------- small files


def kill_writers(folder: Path, num_kills: int) -> None:
    command = [sys.executable, "-m", "tests.reliability.small_files", "writers", str(folder), str(num_kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tell_figure(f"unreadable files / kills: {done.stdout}")
    assert done.stdout.startswith(f"0 / {num_kills} ")


@pytest.mark.slow
def test_a_kill_of_some_writers_of_small_files_leaves_none_unreadable(tmp_path: Path) -> None:
    kill_writers(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_kill_of_any_writer_of_small_files_leaves_none_unreadable(tmp_path: Path) -> None:
    kill_writers(tmp_path, 200)


# -------------------------------------------------------------------------------------------------- verified or nothing


def _edit(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return damage


def _flip(place: float) -> Callable[[Path], None]:
    def flip(content: bytearray) -> None:
        content[int(place * (len(content) - 1))] ^= 1

    return _edit(flip)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "zero body": _edit(lambda content: content.__setitem__(slice(8, None), bytes(len(content) - 8))),
    "all zero": _edit(lambda content: content.__setitem__(slice(None), bytes(len(content)))),
    "first bit": _flip(0.0),
    "middle bit": _flip(0.5),
    "last bit": _flip(1.0),
    "end cut": _edit(lambda content: content.__delitem__(slice(-2, None))),
    "half": _edit(lambda content: content.__delitem__(slice(len(content) // 2, None))),
    "empty": _edit(bytearray.clear),
    "appended": _edit(lambda content: content.extend(b"x")),
    "bytes reversed": _edit(bytearray.reverse),
    "missing": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("x" + path.name)),
    "folder": _replace_by_folder,
    "of another step": lambda path: shutil.copy(str(path).replace("step_00000001", "step_00000002"), path),
}
FILES = ("checkpoint.json", WEIGHTS, "unet/config.json", OPTIMIZER, STATE_NAME)


def test_every_corruption_of_every_file_is_found_and_named_and_nothing_else(run: Run) -> None:
    sound = [save(run, step, num_bytes=5_000) for step in (1, 2)]
    kept = shutil.copytree(sound[0], run.path / "kept")
    detected, missed, false_alarms = 0, [], 0
    for name in FILES:
        for kind, corrupt in CORRUPTIONS.items():
            if (kind, name) == ("of another step", "checkpoint.json"):
                expected = WEIGHTS  # the manifest is sound, and speaks of other files
            elif (kind, name) == ("of another step", STATE_NAME):
                expected = OPTIMIZER
            else:
                expected = name
            false_alarms += bool(verify_checkpoint(sound[0]))
            corrupt(sound[0] / name)
            problems = verify_checkpoint(sound[0])
            if any(expected in str(problem) for problem in problems):
                detected += 1
            else:
                missed.append((kind, name, problems))
            shutil.rmtree(sound[0])
            shutil.copytree(kept, sound[0])
    tell_figure(f"corruptions detected / tried: {detected} / {detected + len(missed)}, false alarms: {false_alarms}")
    assert missed == []
    assert false_alarms == 0


def verify(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_tells_each_damage_and_ends_with_its_status(run: Run, tmp_path: Path) -> None:
    assert verify(run.path)[:2] == (0, f"no checkpoints in {run.path}\n")
    first, second = save(run, 1), save(run, 2)
    assert verify(run.path)[:2] == (0, f"{first.name}: sound\n{second.name}: sound\n")
    CORRUPTIONS["middle bit"](second / OPTIMIZER)
    (second / "foreign").touch()
    exit_code, stdout, stderr = verify(run.path)
    assert (exit_code, stdout) == (1, f"{first.name}: sound\n{second.name}: damaged\n")
    assert "optimizer.safetensors is damaged" in stderr
    assert "foreign does not belong here" in stderr
    assert verify(first)[0] == 0
    assert verify(second)[0] == 1
    assert verify(tmp_path)[0] == 2
    assert verify(tmp_path / "nowhere")[0] == 2
    exit_code, stdout, _ = verify(run.path, "--json")
    told = json.loads(stdout)
    assert (exit_code, told["is_sound"]) == (1, False)
    assert [checkpoint["is_sound"] for checkpoint in told["checkpoints"]] == [True, False]
    assert len(told["checkpoints"][1]["problems"]) == 2


# ------------------------------------------------------------------------------------------------------ order of writes


def test_data_is_synced_before_the_manifest_the_rename_before_the_parent_and_all_before_pruning(
    run: Run, tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; tests/unit/runs/test_checkpoints.py looks at the calls from inside")
    for step in (1, 2):
        save(run, step)
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,rmdir,unlinkat"
    command = ["strace", "-f", "-y", "-s", "4096", "-e", calls, "-o", str(trace)]
    program = [sys.executable, "-m", "tests.reliability.saving", str(run.path)]
    done = subprocess.run([*command, *program], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr}")
    lines = trace.read_text().splitlines()

    def find(pattern: str) -> int:
        found = [index for index, line in enumerate(lines) if re.search(pattern, line)]
        assert found, pattern
        return found[0]

    name = "checkpoint-epoch_00000000-step_00000003"
    parent = re.escape(str(run.checkpoints_dir))
    order = [
        find(r"fsync.*diffusion_pytorch_model\.safetensors>"),
        find(r"fsync.*[^/]state\.json>"),
        find(r"fsync.*[^/]checkpoint\.json>"),
        find(rf"fsync\(\d+<{parent}/\.tmp-[0-9a-f]+-{name}>\)"),
        find(rf"rename.*\.tmp-[0-9a-f]+-{name}\".*\"{parent}/{name}\""),
        find(rf"fsync\(\d+<{parent}>\)"),
        find(rf"rename.*{parent}/checkpoint-epoch_00000000-step_00000001\""),
    ]
    synced = order[4]
    unsynced = [
        file
        for file in (WEIGHTS, OPTIMIZER, "unet/config.json")
        if not any("fsync" in line and Path(file).name in line for line in lines[:synced])
    ]
    tell_figure(f"order of the calls: {order}, not synced: {unsynced}")
    assert unsynced == []
    assert order[:3] == sorted(order[:3])
    assert order[2] < order[4] < order[5] < order[6]
    assert any(
        line for line in lines[order[2] : order[4]] if re.search(rf"fsync\(\d+<{parent}/\.tmp-\w+-{name}>\)", line)
    )


# ---------------------------------------------------------------------------------------------------------- a full disk


def is_training(journal: list[events.Event]) -> bool:
    return any(event.phase == "train" for event in of_kind(journal, events.PhaseStarted))


def is_paused(journal: list[events.Event]) -> bool:
    return bool(of_kind(journal, events.Paused))


class Steer:
    """Polled as commands are: acts once before the first step, and once when the run waits for room.

    Args:
        runs: the folder of the one run.
        at_begin: called when everything is prepared.
        at_pause: called when the run waits; gives the command that it then hears.
    """

    def __init__(self, runs: Path, at_begin: Callable[[], None], at_pause: Callable[[], Command | None]) -> None:
        self.runs = runs
        self.actions = [(is_training, at_begin), (is_paused, at_pause)]

    def __call__(self) -> Command | None:
        journal = next(self.runs.glob("*/journal.jsonl"))
        for has_come, action in self.actions:
            if has_come(JournalTail(journal).read_new()):
                self.actions.remove((has_come, action))
                return action()
        return None


def short_config(tmp_path: Path, model: Path, jsonl: Path) -> TrainConfig:
    """Two steps, a save after each, full state."""
    return small_config(
        tmp_path,
        model,
        jsonl,
        "data_loader.resolution=32",
        max_train_steps=2,
        save_every_n_steps=1,
        cache_dir=str(jsonl.parent / "cache"),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_sdxl: Path, jsonl: Path) -> Run:
    return train_well(short_config(tmp_path_factory.mktemp("undisturbed"), tiny_sdxl, jsonl))[0]


@pytest.fixture
def limit_of_files() -> Iterator[Callable[[int], None]]:
    """Sets how large a file may become; -1 lifts it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def told_of_a_pause(journal: list[events.Event]) -> str:
    kinds = [type(event) for event in journal]
    assert kinds.count(events.Paused) == kinds.count(events.Unpaused) > 0
    (failed, *_) = of_kind(journal, events.SaveFailed)
    return describe(failed, total_steps=None)


TENTHS = [
    pytest.param(tenth, marks=() if tenth in (1, 8) else [pytest.mark.slow, pytest.mark.exhaustive])
    for tenth in range(1, 10)
]


@pytest.mark.parametrize("tenth", TENTHS)
def test_a_write_that_fails_pauses_the_run_which_then_ends_as_the_undisturbed_one(
    tenth: int,
    tmp_path: Path,
    tiny_sdxl: Path,
    jsonl: Path,
    undisturbed: Run,
    limit_of_files: Callable[[int], None],
) -> None:
    largest = max(path.stat().st_size for path in undisturbed.checkpoints_dir.rglob("*.safetensors"))
    seen = []

    def make_room() -> Command:
        (run_path,) = (tmp_path / "runs").iterdir()
        seen.append(sorted(path.name for path in (run_path / "checkpoints").iterdir()))
        limit_of_files(-1)
        return Command.RESUME

    steer = Steer(tmp_path / "runs", lambda: limit_of_files(largest * tenth // 10), make_room)
    run, journal, exit_code = train(short_config(tmp_path, tiny_sdxl, jsonl), steer)
    assert exit_code == 0
    assert "File too large" in told_of_a_pause(journal)
    assert seen == [[]]
    assert digest(run) == digest(undisturbed)
    assert [event.step for event in of_kind(journal, events.CheckpointSaved)] == [1, 2]
    assert all(verify_checkpoint(one.path) == [] for one in list_checkpoints(run.checkpoints_dir))


def fake_room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the disk has free, in bytes, while the list holds a number."""
    free: list[int] = []
    disk_usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: disk_usage(path)._replace(free=free[0]) if free else disk_usage(path)
    )
    return free


def test_a_full_disk_is_seen_before_writing_and_the_run_goes_on_by_itself_when_there_is_room(
    tmp_path: Path, tiny_sdxl: Path, jsonl: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = fake_room(monkeypatch)
    steer = Steer(tmp_path / "runs", lambda: free.append(12345), free.clear)
    run, journal, exit_code = train(short_config(tmp_path, tiny_sdxl, jsonl), steer)
    assert exit_code == 0
    assert re.search(r"step 1 is not saved: .* does not fit .* MiB needed, 12.1 KiB free", told_of_a_pause(journal))
    assert digest(run) == digest(undisturbed)


@pytest.mark.parametrize("command", [Command.RESUME, Command.STOP])
def test_told_so_while_the_disk_is_full_the_run_goes_on_or_ends_without_the_checkpoint(
    command: Command, tmp_path: Path, tiny_sdxl: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = fake_room(monkeypatch)
    commands = [command, Command.STOP]
    paused = []

    def poll() -> Command | None:
        events_now = JournalTail(next((tmp_path / "runs").glob("*/journal.jsonl"))).read_new()
        if is_training(events_now) and not free:
            free.append(0)
        pauses = len(of_kind(events_now, events.Paused))
        if pauses > len(paused):
            paused.append(pauses)
            return commands.pop(0)
        return None

    run, journal, exit_code = train(short_config(tmp_path, tiny_sdxl, jsonl), poll)
    assert exit_code == 0
    assert list_checkpoints(run.checkpoints_dir) == []
    told_of_a_pause(journal)
    steps = [event.step for event in of_kind(journal, events.StepLogged)]
    assert steps == ([1, 2] if command is Command.RESUME else [1])


# -------------------------------------------------------------------------------------------------------------- pruning

ACTIONS = st.one_of(
    st.tuples(st.just("save"), st.integers(1, 3)),
    st.sampled_from([("fail", 0), ("crash", 0), ("foreign", 0)]),
    st.tuples(st.sampled_from(["corrupt", "pin", "resume"]), st.integers(0, 5)),
)


def check_sequence(actions: list[tuple[str, int]]) -> None:
    """After each action: pinned ones, the resume source, foreign files and the newest sound one still stand."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder))
        kept: set[Path] = set()
        source: set[Path] = set()
        newest: Path | None = None
        for step, (action, number) in enumerate(actions):
            sound = [one.path for one in list_checkpoints(run.checkpoints_dir) if not verify_checkpoint(one.path)]
            chosen = sound[number % len(sound)] if sound else None
            match action:
                case "save":
                    newest = save(run, step, num_bytes=100)
                    prune_checkpoints(run.checkpoints_dir, number, protected=source)
                case "fail":
                    with pytest.raises(CheckpointError):
                        save(run, step, num_bytes=100, fault=raise_full)
                case "crash":
                    (run.checkpoints_dir / f".tmp-0123abcd-checkpoint-epoch_00000000-step_{step:08d}").mkdir()
                    assert len(run.remove_leftovers()) == 1
                case "corrupt" if chosen is not None and chosen not in kept | source:
                    (chosen / WEIGHTS).write_bytes(b"")
                    newest = next((path for path in reversed(sound) if path != chosen), None)
                case "pin" if chosen is not None:
                    pin_checkpoint(chosen)
                    kept.add(chosen)
                case "resume" if chosen is not None:
                    source = {chosen}
                case "foreign":
                    foreign = run.checkpoints_dir / f"notes-{step}"
                    foreign.touch()
                    kept.add(foreign)
            for path in kept | source | ({newest} if newest else set()):
                assert path.exists(), (action, path)
            assert leftovers(run) == []


def raise_full() -> None:
    raise OSError(28, "No space left on device")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.lists(ACTIONS, max_size=10))
def test_no_order_of_events_loses_what_must_stand(actions: list[tuple[str, int]]) -> None:
    check_sequence(actions)


@pytest.mark.slow
@pytest.mark.exhaustive
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(ACTIONS, max_size=10))
def test_no_order_of_events_of_500_loses_what_must_stand(actions: list[tuple[str, int]]) -> None:
    check_sequence(actions)
