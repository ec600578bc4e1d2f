"""A program: the demo in an app that fails where it is told to, by the name of a fault in a file.

Arguments: the demo's folder, the file. What is wrong is in the subclass; the rest is real.
"""

import asyncio
import os
import sys
from pathlib import Path

from textual.app import ComposeResult
from textual.message import Message
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from tuitrain.tui import app as tui_app
from tuitrain.tui import launch
from tuitrain.tui.app import TuitrainApp


class Fault(Exception):  # noqa: N818
    """What is thrown."""


class BadRender(Widget):
    def render(self) -> str:
        raise Fault("render")


class BadLine(Widget):
    def render_lines(self, _crop: object) -> list[object]:  # type: ignore[override]
        raise Fault("render_lines")


class BadCompose(Screen[None]):
    def compose(self) -> ComposeResult:
        raise Fault("compose")


class BadMount(Widget):
    def on_mount(self) -> None:
        raise Fault("mount")


class BadWatch(Widget):
    value = reactive(0)

    def watch_value(self, value: int) -> None:
        if value:
            raise Fault("watch")


class BadHandler(Widget):
    class Poked(Message):
        pass

    def on_bad_handler_poked(self) -> None:
        raise Fault("message handler")


class FaultyApp(launch.HostedApp):
    """Looks for the name of a fault ten times a second, and has it once."""

    CSS_PATH = Path(tui_app.__file__).with_name("app.tcss")  # else looked for beside this file
    fault_path: Path

    def on_mount(self) -> None:
        super().on_mount()
        self.set_interval(0.1, self.look_for_fault)

    def look_for_fault(self) -> None:
        if self.fault_path.exists():
            name = self.fault_path.read_text()
            self.fault_path.unlink()
            getattr(self, f"fail_{name}")()

    def throw(self) -> None:
        raise Fault("here")

    def throw_for_good(self) -> None:
        raise SystemExit(3)

    def fail_timer(self) -> None:
        self.throw()

    def fail_render(self) -> None:
        self.screen.mount(BadRender())

    def fail_render_lines(self) -> None:
        self.screen.mount(BadLine())

    def fail_markup(self) -> None:
        self.screen.mount(Static("[/broken]"))

    def fail_compose(self) -> None:
        self.push_screen(BadCompose())

    def fail_mount(self) -> None:
        self.screen.mount(BadMount())

    def fail_watch(self) -> None:
        widget = BadWatch()
        self.screen.mount(widget)
        self.call_after_refresh(setattr, widget, "value", 1)

    def fail_handler(self) -> None:
        widget = BadHandler()
        self.screen.mount(widget)
        self.call_after_refresh(widget.post_message, BadHandler.Poked())

    def fail_worker(self) -> None:
        async def work() -> None:
            self.throw()

        self.run_worker(work())

    def fail_thread(self) -> None:
        self.run_worker(self.throw, thread=True)

    def fail_loop(self) -> None:
        asyncio.get_running_loop().call_soon(self.throw)

    def fail_exit(self) -> None:
        self.throw_for_good()

    def fail_memory(self) -> None:
        self.call_later(self.lack_memory)

    def lack_memory(self) -> None:
        raise MemoryError

    def fail_driver(self) -> None:
        """The driver's writes fail, as those to a terminal that is gone."""
        driver = self._driver
        assert driver is not None

        def write(_text: str) -> None:
            driver.write = type(driver).write.__get__(driver)  # type: ignore[method-assign]
            raise OSError(5, os.strerror(5))

        driver.write = write  # type: ignore[method-assign]

    def fail_leaving(self) -> None:
        """The screen fails, and then the driver cannot even leave."""
        driver = self._driver
        assert driver is not None

        def stop() -> None:
            type(driver).stop_application_mode(driver)
            raise OSError(5, os.strerror(5))

        driver.stop_application_mode = stop  # type: ignore[method-assign]
        self.throw()


def main(folder: str, fault_path: str) -> int:
    from tuitrain.config.files import load_config
    from tuitrain.demo.create import create_demo

    FaultyApp.fault_path = Path(fault_path)
    launch.HostedApp = FaultyApp  # type: ignore[misc]
    overrides = ["max_train_steps=1000000", "max_train_epochs=null", "validation_prompts=[]", "log_every_n_steps=1"]
    config = load_config(create_demo(Path(folder)), [*overrides, "save_every_n_steps=1000000"])

    def on_ready(app: TuitrainApp) -> None:
        app.start(config)

    return launch.run_app(on_ready)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
