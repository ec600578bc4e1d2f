"""Registers an export with a running InvokeAI through its web API; reads names and shapes, loads no tensor.

The model stays where it is: InvokeAI notes its path, reads it, and tells what it is. The only address that is ever
contacted is the one given. Compared with InvokeAI 6.14.2: `app/api/routers/model_manager.py` for the API,
`app/services/model_install` for the job, `backend/model_manager/configs` for what it knows as SDXL.
"""

import contextlib
import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

from safetensors import SafetensorError, safe_open

from tuitrain.engine.weight_files import read_json
from tuitrain.errors import ConfigError, ExportError, printable

LOCAL_URL = "http://127.0.0.1:9090"
"""Where InvokeAI listens when nobody tells it otherwise."""

CONTEXT_DIM = 2048
"""Width of the text embeddings of SDXL, by which InvokeAI tells it from other models."""

Tell = Callable[[str], None]
"""Called with the job's status ("waiting", "running") a few times a second; what it raises cancels the job."""

_TO_K = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_LORA_PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_")
_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")
_ANSWER_SECONDS = 30.0  # for one answer; a cold server looks through its database first
_POLL_SECONDS = 0.1
_MAX_ANSWER_BYTES = 8 << 20
_MAX_REASON = 500


@dataclass(frozen=True, kw_only=True)
class InstalledModel:
    """A model as InvokeAI has it now.

    Args:
        key: InvokeAI's own name for it.
        name: as its lists show it.
        type: "main" or "lora".
        base: "sdxl".
        format: "diffusers", "checkpoint" or "lycoris".
        path: where it lies, and must stay.
        url: of the InvokeAI.
        invokeai_version: of it.
    """

    key: str
    name: str
    type: str
    base: str
    format: str
    path: Path
    url: str
    invokeai_version: str


def install_in_invokeai(
    path: Path,
    *,
    url: str = LOCAL_URL,
    name: str | None = None,
    timeout_seconds: float = 600.0,
    tell: Tell | None = None,
) -> InstalledModel:
    """Register `path` in place with the InvokeAI at `url` and wait until it has read it.

    An interrupt while it waits asks InvokeAI to cancel; the exception carries a note that says so.

    Args:
        path: a packaged folder, a single file or a LoRA.
        url: where InvokeAI listens, with or without a path before its `/api`.
        name: for InvokeAI's lists; None is the name of the folder or file.
        timeout_seconds: for the whole installation.
        tell: see `Tell`.

    Raises:
        ConfigError: `path` is nothing that InvokeAI takes, or `url` is none.
        ModelError: a config in the folder is missing or damaged.
        ExportError: no InvokeAI answers, or it refuses, fails or takes too long.
    """
    path = path.resolve()
    check_installable(path)
    if timeout_seconds <= 0:
        raise ConfigError(f"the timeout is {timeout_seconds:g} seconds, it must be above 0")
    server = _Server(url, answer_seconds=min(_ANSWER_SECONDS, timeout_seconds))
    deadline = monotonic() + timeout_seconds
    version = server.version()
    job = _Job(server, path)
    job.start(name)
    try:
        config = job.wait(deadline, tell or (lambda _: None))
    except TimeoutError:
        raise ExportError(
            f"InvokeAI has not finished with {path} after {timeout_seconds:g} seconds, its job is {job.status}",
            hint="it goes on by itself: see the queue of its Model Manager, or give --timeout more seconds",
        ) from None
    except ExportError:
        raise
    except BaseException as error:  # an interrupt, or what `tell` raised: leave no job behind
        error.add_note(job.cancel())
        raise
    return InstalledModel(
        **{key: printable(config.get(key)) for key in ("key", "name", "type", "base", "format")},
        path=path,
        url=server.url,
        invokeai_version=version,
    )


# ---- what InvokeAI takes


def check_installable(path: Path) -> None:
    """Check that InvokeAI will know `path` as SDXL.

    Raises:
        ConfigError: it will not.
        ModelError: a config in the folder is missing or damaged.
    """
    if path.is_dir():
        _check_folder(path)
    elif not path.exists():
        raise ConfigError(f"there is no {path}", hint="give a packaged folder, a single file or a LoRA")
    elif path.suffix != ".safetensors":
        raise ConfigError(f"{path} is neither a folder nor a .safetensors file", hint="package the checkpoint first")
    else:
        _check_file(path)


def _check_folder(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ConfigError(
            f"{folder} is not a complete model, it has no model_index.json",
            hint="make one of a checkpoint: tuitrain package CHECKPOINT --out DIR",
        )
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in _PIPELINES:
        raise ConfigError(f"{folder} is a {printable(pipeline)}, InvokeAI takes a {_PIPELINES[0]}")
    unet = read_json(folder / "unet" / "config.json")
    read_json(folder / "scheduler" / "scheduler_config.json")  # without it InvokeAI takes the folder for a text encoder
    _check_width(folder, "cross_attention_dim", unet.get("cross_attention_dim"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if not any(file.is_file() for file in (folder / part).glob("*.safetensors")):  # a dangling link is none
            raise ConfigError(f"{folder} has no .safetensors file in {part}", hint="the copy or download stopped early")


def _check_file(path: Path) -> None:
    shapes = _read_shapes(path)
    if lora := [name for name in shapes if name.startswith(_LORA_PREFIXES)]:
        if len(lora) < len(shapes):
            stranger = next(name for name in shapes if not name.startswith(_LORA_PREFIXES))
            raise ConfigError(
                f"{path} is a LoRA with the name {printable(stranger)}, which InvokeAI does not read",
                hint="make one with tuitrain extract-lora",
            )
        for name in lora:
            if name.endswith(("attn2_to_k.lora_down.weight", "attn2_to_v.lora_down.weight")):
                _check_width(path, name, shapes[name][-1])
    elif _TO_K in shapes:
        _check_width(path, _TO_K, shapes[_TO_K][-1])
    else:
        raise ConfigError(
            f"{path} is neither a LoRA nor a whole model in SDXL's original layout",
            hint="make one with tuitrain extract-lora, or with tuitrain package --single-file",
        )


def _check_width(path: Path, what: str, width: object) -> None:
    if width != CONTEXT_DIM:
        raise ConfigError(
            f"InvokeAI does not know {path} as SDXL: {what} is {printable(width)}, that of SDXL is {CONTEXT_DIM}",
            hint="a model of another size, like the demo's, works in diffusers alone",
        )


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="make or copy it again") from error


# ---- the job


class _Job:
    """An installation inside InvokeAI.

    Args:
        server: that does it.
        path: absolute, without links.
    """

    def __init__(self, server: "_Server", path: Path) -> None:
        self.status = "unknown"
        self._server = server
        self._path = path
        self._place = ""

    def start(self, name: str | None) -> None:
        """Ask for it.

        Raises:
            ExportError: it is refused.
        """
        source = quote(str(self._path), safe="", errors="surrogateescape")
        config = {} if name is None else {"name": name}
        try:
            job = self._server.ask("POST", f"/api/v2/models/install?source={source}&inplace=true", config)
        except _RefusedError as refusal:
            self._raise_refused(refusal)
        if type(job.get("id")) is not int:
            raise self._server.stranger("its answer to an installation has no job number")
        self._place = f"/api/v2/models/install/{job['id']}"
        self.status = printable(job.get("status"))

    def wait(self, deadline: float, tell: Tell) -> Mapping[str, Any]:
        """The model's config in InvokeAI when it is done.

        Raises:
            ExportError: the job failed or was cancelled there.
            TimeoutError: `deadline`, in seconds of the monotonic clock, is over.
        """
        while True:
            try:
                job = self._server.ask("GET", self._place)
            except _RefusedError as refusal:
                raise ExportError(
                    f"InvokeAI does not tell how far {self._path} is: {refusal}",
                    hint="it may have been started anew: look into its Model Manager, then try again",
                ) from None
            self.status = printable(job.get("status"))
            tell(self.status)
            if self.status == "completed":
                return self._read_result(job)
            if self.status == "cancelled":
                raise ExportError(f"the installation of {self._path} was cancelled in InvokeAI")
            if self.status == "error":
                self._raise_failed(job)
            if monotonic() >= deadline:
                raise TimeoutError
            sleep(_POLL_SECONDS)

    def cancel(self) -> str:
        """Ask InvokeAI to stop, and tell in a sentence what that means."""
        with contextlib.suppress(ExportError, _RefusedError):
            self._server.ask("DELETE", self._place)
            return (
                f"InvokeAI was asked to cancel the installation of {self._path};"
                " if it had begun to read it, the model may still appear in its Model Manager"
            )
        return f"InvokeAI could not be asked to cancel the installation of {self._path}; it may go on by itself"

    def _read_result(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        config = job.get("config_out")
        if not isinstance(config, dict) or "key" not in config:
            raise self._server.stranger("a finished installation has no model")
        if config.get("type") == "unknown" or config.get("base") == "unknown":
            raise ExportError(
                f"InvokeAI registered {self._path} but does not know what it is, so nothing can use it",
                hint=f"remove {printable(config.get('name'))} in its Model Manager; its log tells what it looked for",
            )
        return config

    def _raise_failed(self, job: Mapping[str, Any]) -> NoReturn:
        kind, reason = printable(job.get("error_reason")), _shortened(job.get("error"))
        if kind == "DuplicateModelException":
            raise ExportError(
                f"{self._path} is installed in InvokeAI already: {reason}",
                hint="nothing needs to be done; to have it read anew, remove it in the Model Manager first",
            )
        raise ExportError(f"InvokeAI could not install {self._path}: {reason} ({kind})", hint="its log tells more")

    def _raise_refused(self, refusal: "_RefusedError") -> NoReturn:
        if refusal.code in (401, 403):
            raise ExportError(
                f"the InvokeAI at {self._server.url} wants a login ({refusal})",
                hint="it runs for several users: add the path in its Model Manager as an administrator",
            ) from None
        if refusal.code == 409 and "Unsupported model source" in refusal.reason:
            raise ExportError(
                f"InvokeAI finds no {self._path}: "
                + (
                    "it runs in a container or as a user who may not read there"
                    if self._server.is_local
                    else f"{self._server.host} is another machine, and the path must exist there under the same name"
                ),
                hint="put the file where InvokeAI sees it under the same path, or add it in its Model Manager",
            ) from None
        if refusal.code == 409:
            raise ExportError(
                f"InvokeAI has {self._path} already: {refusal.reason}",
                hint="nothing needs to be done; to have it read anew, remove it in the Model Manager first",
            ) from None
        if refusal.code == 415:
            raise ExportError(f"InvokeAI does not know what {self._path} is: {refusal.reason}") from None
        raise ExportError(f"InvokeAI refused {self._path}: {refusal}", hint="its log tells more") from None


# ---- the server


class _RefusedError(Exception):
    """The server said no.

    Args:
        code: the HTTP status.
        reason: in words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (HTTP {code})")
        self.code = code
        self.reason = reason


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: only the given address is contacted."""


class _Server:
    """Speaks to the one address given, never through a proxy.

    Args:
        url: of an InvokeAI.
        answer_seconds: to wait for one answer.

    Raises:
        ConfigError: `url` is no address.
    """

    def __init__(self, url: str, *, answer_seconds: float) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port  # asking for a port checks it
        except ValueError as error:
            raise _wrong_url(url, str(error)) from None
        if parts.scheme not in ("http", "https") or not host:
            raise _wrong_url(url, "it must begin with http:// or https:// and name a host")
        if parts.username or parts.query or parts.fragment or not (url.isascii() and url.isprintable()) or " " in url:
            raise _wrong_url(url, "it must be a plain address")
        self.host = host
        self.url = url.rstrip("/")
        self.is_local = _is_local(host)
        self._answer_seconds = answer_seconds
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)

    def version(self) -> str:
        """The InvokeAI's version.

        Raises:
            ExportError: nothing answers, or something else does.
        """
        try:
            version = self.ask("GET", "/api/v1/app/version").get("version")
        except _RefusedError as refusal:
            raise self.stranger(f"it answers {refusal}") from None
        if not isinstance(version, str):
            raise self.stranger("it does not tell its version")
        return printable(version)

    def ask(self, method: str, place: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """The JSON object that the server answers; empty where it answers nothing.

        Raises:
            ExportError: nothing answers, or something that is not InvokeAI.
            _RefusedError: the answer is an error.
        """
        request = urllib.request.Request(self.url + place, method=method, headers={"Accept": "application/json"})
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with self._opener.open(request, timeout=self._answer_seconds) as answer:
                content = answer.read(_MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                if 300 <= error.code < 400:
                    raise self.stranger(f"it points to {_shortened(error.headers.get('Location'))}") from None
                reason = _read_detail(error) or error.reason
            raise _RefusedError(error.code, _shortened(reason)) from None
        except http.client.HTTPException:
            raise self.stranger("it does not speak HTTP") from None
        except OSError as error:  # URLError, and what reading the answer raises
            raise self._unreachable(error) from None
        try:
            values = json.loads(content or b"{}")
        except ValueError:
            values = None
        if values is None and method == "DELETE":
            return {}
        if not isinstance(values, dict):
            raise self.stranger("its answer is not a JSON object")
        return values

    def stranger(self, why: str) -> ExportError:
        """The error that something else than InvokeAI answers."""
        return ExportError(
            f"what answers at {self.url} is not InvokeAI: {why}",
            hint="give the address that InvokeAI prints when it starts with --url",
        )

    def _unreachable(self, error: OSError) -> ExportError:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return ExportError(
                f"the server at {self.url} does not answer within {self._answer_seconds:g} seconds",
                hint="is it busy, or is something else listening there?",
            )
        why = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        return ExportError(
            f"no InvokeAI answers at {self.url}: {_shortened(why)}",
            hint="start InvokeAI, or give its address with --url",
        )


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified  # InvokeAI prints 0.0.0.0 where it listens to all


def _wrong_url(url: str, why: str) -> ConfigError:
    return ConfigError(f"--url is {printable(url)}: {why}", hint=f"like {LOCAL_URL}")


def _read_detail(error: urllib.error.HTTPError) -> str:
    """What FastAPI says of an error: a sentence, or a list of what is wrong with the request."""
    try:
        detail = json.loads(error.read(_MAX_ANSWER_BYTES))["detail"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
    if isinstance(detail, list):
        return "; ".join(str(item.get("msg")) if isinstance(item, dict) else str(item) for item in detail)
    return str(detail)


def _shortened(text: object) -> str:
    """Somebody else's words on one line, at most 500 characters."""
    words = printable(" ".join(str(text).split()))
    return words if len(words) <= _MAX_REASON else words[:_MAX_REASON] + "..."
