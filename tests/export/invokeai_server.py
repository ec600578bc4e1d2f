"""A server that speaks the part of InvokeAI's web API that installs models, and files it takes; knows no tuitrain.

Routes, statuses and fields are those of InvokeAI 6.14.2: `GET /api/v1/app/version`, `POST /api/v2/models/install`,
`GET` and `DELETE /api/v2/models/install/{id}`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from safetensors.numpy import save_file

VERSION = "/api/v1/app/version"
INSTALL = "/api/v2/models/install"
JOB = f"{INSTALL}/7"

LORA_NAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
TO_K = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass
class InvokeAI:
    """What the server says and what it was asked.

    Args:
        url: its address.
        jobs: the answers about the job, one after the other; the last one again and again.
        answers: other answers, (status, body), by method and path.
        asked: method, path, query and body of every request.
    """

    url: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    def answer(self, method: str, place: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.asked.append((method, place, query, body))
        if (method, place) in self.answers:
            return self.answers[method, place]
        match method, place:
            case "GET", "/api/v1/app/version":
                return 200, {"version": "6.14.2"}
            case "POST", "/api/v2/models/install":
                return 201, job("waiting", source=query["source"])
            case "GET", "/api/v2/models/install/7":
                return 200, self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
            case "DELETE", "/api/v2/models/install/7":
                return 201, None
        return 404, {"detail": "Not Found"}

    @property
    def places(self) -> list[tuple[str, str]]:
        """Method and path of every request."""
        return [(method, place) for method, place, _, _ in self.asked]


def job(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": 7, "status": status, "error_reason": None, "error": None, "config_out": None, **fields}


def completed(**fields: Any) -> dict[str, Any]:
    config = {"key": "k-1", "name": "robocats", "type": "lora", "base": "sdxl", "format": "lycoris", "path": "/x"}
    return job("completed", config_out={**config, **fields})


@contextmanager
def serve_invokeai(*jobs: dict[str, Any]) -> Iterator[InvokeAI]:
    """Serve on a free port of this machine until the block ends."""
    invokeai = InvokeAI(jobs=list(jobs))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, body = invokeai.answer(self.command, parts.path, query, json.loads(content) if content else None)
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("Location", body)
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        invokeai.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield invokeai
        finally:
            server.shutdown()
            thread.join()


def write_lora(path: Path, *, width: int = 2048, **others: tuple[int, ...]) -> Path:
    shapes = {LORA_NAME: (2, width), **others}
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
    return path


def write_single_file(path: Path, *, width: int = 2048) -> Path:
    save_file({TO_K: np.zeros((2, width), np.float16)}, path)
    return path


def write_folder(folder: Path, *, width: int = 2048) -> Path:
    """A diffusers folder with every file that InvokeAI looks at, of a few numbers."""
    texts = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
        "unet/config.json": {"cross_attention_dim": width},
    }
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        (folder / part).mkdir(parents=True)
        if part != "scheduler":
            save_file({"w": np.zeros(2, np.float16)}, folder / part / "model.fp16.safetensors")
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values))
    return folder
