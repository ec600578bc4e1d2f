"""Registering exports with InvokeAI: what is asked, what is told, and each way in which it can fail."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.export.invokeai_server import (
    INSTALL,
    JOB,
    LORA_NAME,
    VERSION,
    InvokeAI,
    completed,
    job,
    serve_invokeai,
    write_folder,
    write_lora,
    write_single_file,
)
from tuitrain.errors import ConfigError, ExportError, TuitrainError
from tuitrain.export.invokeai import InstalledModel, check_installable, install_in_invokeai


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "robo cats #1.safetensors")


@pytest.fixture
def invokeai() -> Iterator[InvokeAI]:
    with serve_invokeai(job("waiting"), job("running"), completed()) as server:
        yield server


def reason(error: pytest.ExceptionInfo[TuitrainError]) -> str:
    (problem,) = error.value.problems
    return str(problem)


# ---- what is asked


def test_the_path_is_sent_in_place_and_the_result_is_told(lora: Path, invokeai: InvokeAI) -> None:
    told: list[str] = []
    model = install_in_invokeai(lora, url=invokeai.url, name="Robo", tell=told.append)
    assert model == InstalledModel(
        key="k-1",
        name="robocats",
        type="lora",
        base="sdxl",
        format="lycoris",
        path=lora,
        url=invokeai.url,
        invokeai_version="6.14.2",
    )
    assert told == ["waiting", "running", "completed"]
    assert invokeai.asked[:2] == [
        ("GET", VERSION, {}, None),
        ("POST", INSTALL, {"source": str(lora), "inplace": "true"}, {"name": "Robo"}),
    ]
    assert invokeai.places[2:] == [("GET", JOB)] * 3


@pytest.mark.parametrize("write", [write_folder, write_single_file, write_lora])
def test_every_kind_of_export_is_sent(write: Callable[[Path], Path], invokeai: InvokeAI, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    install_in_invokeai(path, url=invokeai.url)
    assert invokeai.asked[1][2:] == ({"source": str(path), "inplace": "true"}, {})


def test_a_relative_path_and_a_link_are_sent_as_the_file_they_mean(
    lora: Path, invokeai: InvokeAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.safetensors").symlink_to(lora)
    monkeypatch.chdir(tmp_path)
    assert install_in_invokeai(Path("link.safetensors"), url=invokeai.url).path == lora
    assert invokeai.asked[1][2]["source"] == str(lora)


def test_an_invokeai_below_a_path_is_asked_there(lora: Path, invokeai: InvokeAI) -> None:
    with pytest.raises(ExportError, match="not InvokeAI"):
        install_in_invokeai(lora, url=f"{invokeai.url}/invoke/")
    assert invokeai.places == [("GET", f"/invoke{VERSION}")]


def test_only_the_given_address_is_contacted(lora: Path, invokeai: InvokeAI, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_invokeai() as other:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        install_in_invokeai(lora, url=invokeai.url)
        invokeai.answers["GET", VERSION] = (302, other.url + VERSION)
        with pytest.raises(ExportError, match=f"it points to {other.url}"):
            install_in_invokeai(lora, url=invokeai.url)
        assert other.asked == []


# ---- what is not sent


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: folder / "missing", "there is no"),
        (lambda folder: write_lora(folder / "model.ckpt"), "neither a folder nor"),
        (lambda folder: write_lora(folder / "a.safetensors", width=80), "is 80, that of SDXL is 2048"),
        (lambda folder: write_single_file(folder / "a.safetensors", width=80), "is 80, that of SDXL is 2048"),
        (lambda folder: write_folder(folder / "model", width=80), "cross_attention_dim is 80"),
        (lambda folder: write_lora(folder / "a.safetensors", **{"unet.x.lora_A": (2, 2)}), "unet.x.lora_A"),
        (lambda folder: folder, "no model_index.json"),
    ],
    ids=["missing", "suffix", "small LoRA", "small file", "small folder", "other names", "no model"],
)
def test_what_invokeai_will_not_take_is_refused_before_it_is_asked(
    make: Callable[[Path], Path], match: str, invokeai: InvokeAI, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=match):
        install_in_invokeai(path, url=invokeai.url)
    assert invokeai.asked == []


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"conv_in.weight": np.zeros(2)}, tmp_path / "unet.safetensors")
    with pytest.raises(ConfigError, match="neither a LoRA nor a whole model"):
        check_installable(tmp_path / "unet.safetensors")


def test_a_file_that_was_cut_off_is_refused(lora: Path) -> None:
    lora.write_bytes(lora.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="is damaged"):
        check_installable(lora)


def test_a_checkpoint_is_refused_with_the_command_that_packages_it(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(ConfigError) as error:
        check_installable(tmp_path)
    assert "tuitrain package" in reason(error)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_with_a_link_to_nothing_is_refused(part: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"in {part} "):
        check_installable(folder)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "unet/config.json"])
def test_a_folder_without_a_config_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(TuitrainError, match=name):
        check_installable(folder)


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ConfigError, match="FluxPipeline"):
        check_installable(folder)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:9090",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:99999999",
        "http://[::1",
        "http://user:word@127.0.0.1",
        "http://127.0.0.1/?a=b",
        "http://127.0.0.1/\n",
        "",
    ],
)
def test_an_address_that_is_none_is_refused(url: str, lora: Path) -> None:
    with pytest.raises(ConfigError) as error:
        install_in_invokeai(lora, url=url)
    assert reason(error).startswith("--url is") and "\n" not in reason(error)


def test_a_timeout_of_nothing_is_refused(lora: Path, invokeai: InvokeAI) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        install_in_invokeai(lora, url=invokeai.url, timeout_seconds=0)


# ---- who answers


def test_no_server_is_told_in_one_sentence(lora: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ExportError) as error:
        install_in_invokeai(lora, url=f"http://127.0.0.1:{port}")
    assert reason(error) == (
        f"no InvokeAI answers at http://127.0.0.1:{port}: Connection refused"
        " (start InvokeAI, or give its address with --url)"
    )


@pytest.mark.parametrize(
    ("code", "body"),
    [(200, "<html>Jupyter</html>"), (200, ["6.14.2"]), (200, {"name": "x"}), (404, "no"), (401, {"detail": "who?"})],
    ids=str,
)
def test_another_program_is_not_given_the_path(code: int, body: Any, lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["GET", VERSION] = (code, body)
    with pytest.raises(ExportError, match=f"what answers at {invokeai.url} is not InvokeAI"):
        install_in_invokeai(lora, url=invokeai.url)
    assert invokeai.places == [("GET", VERSION)]


@contextmanager
def raw_server(content: bytes) -> Iterator[str]:
    """Accepts one connection, sends `content` and keeps it open; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(content)
                done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        done.set()
        thread.join()


def test_a_server_of_another_protocol_is_told(lora: Path) -> None:
    with raw_server(b"SSH-2.0-OpenSSH_9.2\r\n") as url, pytest.raises(ExportError, match="does not speak HTTP"):
        install_in_invokeai(lora, url=url)


def test_a_server_that_says_nothing_is_given_up(lora: Path) -> None:
    with raw_server(b"") as url, pytest.raises(ExportError, match=r"does not answer within 0\.2 seconds"):
        install_in_invokeai(lora, url=url, timeout_seconds=0.2)


# ---- what it refuses


@pytest.mark.parametrize(
    ("code", "body", "match"),
    [
        (409, {"detail": "Unsupported model source: '/x'"}, "it runs in a container or as a user who may not read"),
        (409, {"detail": "There is already a model"}, "has .* already: There is already a model"),
        (415, {"detail": "Unsupported Media Type"}, "does not know what .* is"),
        (422, {"detail": [{"msg": "Field required"}, {"msg": "Bad"}]}, r"refused .*: Field required; Bad \(HTTP 422\)"),
        (401, {"detail": "Authentication required"}, r"wants a login \(Authentication required \(HTTP 401\)\)"),
        (403, {"detail": "Admin privileges required"}, "wants a login"),
        (500, "Internal Server Error", r"refused .*: Internal Server Error \(HTTP 500\)"),
    ],
    ids=str,
)
def test_a_refusal_is_told_with_its_reason(code: int, body: Any, match: str, lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["POST", INSTALL] = (code, body)
    with pytest.raises(ExportError, match=match):
        install_in_invokeai(lora, url=invokeai.url)


def test_a_server_on_another_machine_must_have_the_path_too(lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["POST", INSTALL] = (409, {"detail": "Unsupported model source: '/x'"})
    # 127.1 is this machine in an old spelling, which nobody takes for an address of it.
    url = invokeai.url.replace("127.0.0.1", "127.1")
    with pytest.raises(ExportError, match=r"127\.1 is another machine, and the path must exist there"):
        install_in_invokeai(lora, url=url)


def test_an_answer_without_a_job_is_not_one_of_invokeai(lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["POST", INSTALL] = (201, {"status": "waiting"})
    with pytest.raises(ExportError, match="no job number"):
        install_in_invokeai(lora, url=invokeai.url)


# ---- how the job ends


@pytest.mark.parametrize(
    ("kind", "text", "match"),
    [
        ("InvalidModelConfigException", "Could not identify model", r"could not install .*: Could not .* \(Invalid"),
        ("DuplicateModelException", "A model with path '/x' is already installed", "is installed in InvokeAI already"),
        ("OSError", "a\x1b[2Jb\nc", r"could not install .*: a\\x1b\[2Jb c \(OSError\)"),
        ("ValueError", "x" * 10_000, r"x{500}\.\.\. \(ValueError\)"),
    ],
    ids=["unknown", "twice", "control characters", "long"],
)
def test_a_failed_job_is_told_with_its_reason(kind: str, text: str, match: str, lora: Path) -> None:
    with serve_invokeai(job("running"), job("error", error_reason=kind, error=text)) as invokeai:
        with pytest.raises(ExportError, match=match) as error:
            install_in_invokeai(lora, url=invokeai.url)
        assert reason(error).isprintable()


@pytest.mark.parametrize("fields", [{"type": "unknown"}, {"base": "unknown"}], ids=str)
def test_a_model_that_invokeai_took_without_knowing_it_is_an_error(fields: dict[str, str], lora: Path) -> None:
    with serve_invokeai(completed(**fields)) as invokeai, pytest.raises(ExportError) as error:
        install_in_invokeai(lora, url=invokeai.url)
    assert "does not know what it is" in reason(error) and "remove robocats" in reason(error)


def test_a_job_that_somebody_cancelled_there_is_told(lora: Path) -> None:
    with serve_invokeai(job("cancelled")) as invokeai, pytest.raises(ExportError, match="was cancelled in InvokeAI"):
        install_in_invokeai(lora, url=invokeai.url)


def test_a_job_that_is_gone_is_told(lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["GET", JOB] = (404, {"detail": "No job with id 7 known"})
    with pytest.raises(ExportError, match="No job with id 7 known"):
        install_in_invokeai(lora, url=invokeai.url)


def test_a_job_that_takes_too_long_is_left_alone(lora: Path) -> None:
    with serve_invokeai(job("running")) as invokeai:
        with pytest.raises(ExportError, match=r"has not finished with .* after 0\.3 seconds, its job is running"):
            install_in_invokeai(lora, url=invokeai.url, timeout_seconds=0.3)
        assert "DELETE" not in {method for method, _ in invokeai.places}


class CancelledError(Exception):
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, CancelledError])
def test_an_interrupt_cancels_the_job_and_says_so(kind: type[BaseException], lora: Path, invokeai: InvokeAI) -> None:
    def tell(status: str) -> None:
        if status == "running":
            raise kind

    with pytest.raises(kind) as interrupt:
        install_in_invokeai(lora, url=invokeai.url, tell=tell)
    assert invokeai.places[-1] == ("DELETE", JOB)
    (note,) = interrupt.value.__notes__
    assert note.startswith(f"InvokeAI was asked to cancel the installation of {lora}")


def test_a_cancel_that_does_not_get_through_is_told(lora: Path, invokeai: InvokeAI) -> None:
    invokeai.answers["DELETE", JOB] = (415, {"detail": "no job"})

    def tell(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        install_in_invokeai(lora, url=invokeai.url, tell=tell)
    assert "could not be asked" in interrupt.value.__notes__[0]


def test_a_lora_that_begins_with_another_layer_is_judged_by_its_cross_attention(tmp_path: Path) -> None:
    first = "lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight"
    check_installable(write_lora(tmp_path / "a.safetensors", **{first: (2, 320, 3, 3)}))
    with pytest.raises(ConfigError, match=LORA_NAME):
        check_installable(write_lora(tmp_path / "b.safetensors", width=768, **{first: (2, 320, 3, 3)}))
