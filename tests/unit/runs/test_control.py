"""Commands arrive once, whole and in order."""

import os
import threading
from pathlib import Path

import pytest

from tuitrain.runs.control import Command, CommandQueue, drop_commands, poll_control_dir, send_command


def poll_all(control_dir: Path) -> list[Command]:
    commands = []
    while (command := poll_control_dir(control_dir)) is not None:
        commands.append(command)
    return commands


def test_commands_from_files_are_taken_once_in_the_order_they_were_given(tmp_path: Path) -> None:
    given = [Command.PAUSE, Command.SAVE, Command.RESUME, Command.SAMPLE, Command.SAVE, Command.STOP]
    for command in given:
        send_command(tmp_path, command)
    assert poll_all(tmp_path) == given
    assert os.listdir(tmp_path) == []


def test_a_half_written_command_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0011aabb-00000000000000000001.command").write_text("st")
    assert poll_control_dir(tmp_path) is None
    send_command(tmp_path, Command.SAVE)
    assert poll_all(tmp_path) == [Command.SAVE]


def test_no_command_is_lost_or_torn_while_being_sent(tmp_path: Path) -> None:
    def send_many() -> None:
        for _ in range(50):
            send_command(tmp_path, Command.SAMPLE)

    sender = threading.Thread(target=send_many)
    sender.start()
    received: list[Command] = []
    while sender.is_alive():
        received += poll_all(tmp_path)
    received += poll_all(tmp_path)
    assert received == [Command.SAMPLE] * 50


@pytest.mark.parametrize("content", [b"", b"explode", b"STOP", b"\xff\xfe", b"stop; rm -rf /"])
def test_what_is_no_command_is_removed_and_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "00000000000000000001.command").write_bytes(content)
    send_command(tmp_path, Command.STOP)
    assert poll_all(tmp_path) == [Command.STOP]
    assert os.listdir(tmp_path) == []


def test_what_others_put_beside_the_commands_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "00000000000000000001.command").mkdir()
    send_command(tmp_path, Command.STOP)
    assert poll_all(tmp_path) == [Command.STOP]
    send_command(tmp_path, Command.STOP)
    (tmp_path / ".tmp-0011aabb-00000000000000000001.command").touch()
    drop_commands(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["00000000000000000001.command", "notes.txt"]


def test_a_command_file_is_private(tmp_path: Path) -> None:
    send_command(tmp_path, Command.STOP)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_control_folder_that_was_deleted_holds_no_commands(tmp_path: Path) -> None:
    assert poll_control_dir(tmp_path / "gone") is None


def test_a_queue_gives_its_own_commands_first_and_never_waits(tmp_path: Path) -> None:
    commands = CommandQueue(tmp_path)
    assert commands.poll() is None
    send_command(tmp_path, Command.STOP)
    commands.put(Command.PAUSE)
    commands.put(Command.SAVE)
    assert [commands.poll() for _ in range(4)] == [Command.PAUSE, Command.SAVE, Command.STOP, None]
    assert CommandQueue().poll() is None
