"""Data that carries code, read in every way tuitrain reads data; as a program, it tells what was run.

    python -m tests.reliability.code_vectors MODEL FOLDER

MODEL is a sound base model, FOLDER an empty one. Prints JSON: the outcome of each vector, and what an audit hook saw.
"""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typer.testing import CliRunner

from tests.engine.harness import small_config, train, write_pictures
from tuitrain.commands.program import app
from tuitrain.engine.launch import resume_run, train_run
from tuitrain.runs.checkpoints import list_checkpoints
from tuitrain.runs.manifest import hash_file, manifest_to_json
from tuitrain.runs.run import Run, find_runs
from tuitrain.runs.states import STATE_NAME, read_state

EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "builtins.input", "pty.spawn")
"""Audit events that nothing read from data may cause."""


class Auditor:
    """Collects what Python does while data is read.

    Args:
        folder: where all data of others lies: code compiled or imported from there is foreign.
    """

    def __init__(self, folder: Path) -> None:
        self.is_on = False
        self.vector = ""
        self.seen: list[str] = []
        self._folder = str(folder)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        is_foreign = event in ("compile", "exec", "import") and self._folder in _file_of(arguments)
        names_evil = event == "pickle.find_class" and arguments[0] in ("os", "posix", "builtins", "subprocess")
        if event in EXECUTING or event == "socket.bind" or is_foreign or names_evil:
            self.seen.append(f"{self.vector}: {event} {arguments!r}"[:300])


def _file_of(arguments: tuple[Any, ...]) -> str:
    """The file that compile, exec or import speak of."""
    return " ".join(str(getattr(argument, "co_filename", argument))[:1000] for argument in arguments if argument)


class Evil:
    """Pickled, it touches the canary when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Vectors:
    """Each method without an underscore is a vector: it makes hostile data in a folder of its own and has it read."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._canary = folder / "canary"
        self._evil = pickle.dumps(Evil(self._canary))
        self._script = f"import os\nos.system('touch {self._canary}')\n"
        self._jsonl = write_pictures(folder / "pictures", 4)

    def _at(self, name: str) -> Path:
        path = self._folder / name
        path.mkdir()
        return path

    def _copy(self, name: str) -> Path:
        return Path(shutil.copytree(self._model, self._at(name) / "model"))

    def _train(self, model: Path, jsonl: Path | None = None, **values: Any) -> str:
        folder = self._folder / f"train-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        config = small_config(folder, model, jsonl or self._jsonl, **{"max_train_steps": 1, **values})
        run, _events, exit_code = train(config)
        return f"exit {exit_code}: {run.log_path.read_text().splitlines()[-1]}"

    def _run(self, *arguments: str | Path) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return f"exit {result.exit_code}: {result.output.splitlines()[-1] if result.output else ''}"

    # Models

    def unet_as_bin(self) -> str:
        model = self._copy("unet_as_bin")
        for path in (model / "unet").glob("*.safetensors"):
            path.unlink()
        torch.save(Evil(self._canary), model / "unet" / "diffusion_pytorch_model.bin")
        return self._train(model)

    def bin_beside_safetensors(self) -> str:
        model = self._copy("bin_beside_safetensors")
        for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
            torch.save(Evil(self._canary), model / part / f"{stem}.bin")
        return self._train(model)

    def pickle_named_safetensors(self) -> str:
        model = self._copy("pickle_named_safetensors")
        for path in (model / "unet").glob("*.safetensors"):
            path.write_bytes(self._evil)
        return self._train(model)

    def single_file_ckpt(self) -> str:
        path = self._at("single_file_ckpt") / "model.ckpt"
        torch.save(Evil(self._canary), path)
        return self._train(path)

    def single_file_renamed(self) -> str:
        path = self._at("single_file_renamed") / "model.safetensors"
        torch.save(Evil(self._canary), path)
        return self._train(path)

    def vae_as_bin(self) -> str:
        vae = Path(shutil.copytree(self._model / "vae", self._at("vae_as_bin") / "vae"))
        for path in vae.glob("*.safetensors"):
            path.unlink()
        torch.save(Evil(self._canary), vae / "diffusion_pytorch_model.bin")
        return self._train(self._model, vae_model=str(vae))

    def code_in_the_model(self) -> str:
        """Classes, auto_map and modules of its own, as repositories with custom code have."""
        model = self._copy("code_in_the_model")
        for part in ("", "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
            for name in ("evil", "pipeline", "__init__", "tokenization_evil", "modeling_evil"):
                (model / part / f"{name}.py").write_text(self._script)
        for name in (
            "unet/config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
            "model_index.json",
        ):
            path = model / name
            values = json.loads(path.read_text()) if path.exists() else {}
            classes = dict.fromkeys(("AutoModel", "AutoConfig"), "evil.Evil") | {"AutoTokenizer": ["evil.Evil", None]}
            values |= {"auto_map": classes, "trust_remote_code": True}
            if name == "model_index.json":
                values |= {"_class_name": ["pipeline", "Evil"], "unet": ["evil", "Evil"], "evil": ["evil", "Evil"]}
            path.write_text(json.dumps(values))
        return self._train(model)

    # What a run keeps

    def state_and_cache(self) -> str:
        """The optimizer's and all other tensors of a state, with manifests that fit, and every entry of the cache."""
        folder = self._at("state_and_cache")
        config = small_config(
            folder, self._model, self._jsonl, max_train_steps=2, save_every_n_steps=1, cache_dir=str(folder / "cache")
        )
        run, _events, exit_code = train(config)
        assert exit_code == 0, run.log_path.read_text()
        checkpoint = list_checkpoints(run.checkpoints_dir)[-1].path
        for path in (checkpoint / "state").glob("*.safetensors"):
            path.write_bytes(self._evil)
        state = read_state(checkpoint)
        files = [
            replace(file, size=(checkpoint / file.path).stat().st_size, sha256=hash_file(checkpoint / file.path))
            for file in state.files
        ]
        (checkpoint / STATE_NAME).write_text(manifest_to_json(replace(state, files=files)))
        entries = [path for path in (folder / "cache").rglob("*") if path.is_file()]
        assert entries
        for path in entries:
            path.write_bytes(self._evil)
        config, point = resume_run(run, checkpoint, ["max_train_steps=3"])
        exit_code = train_run(config, run, lambda: None, resume=point)
        again = self._train(self._model, cache_dir=str(folder / "cache"))
        return f"exit {exit_code}: {run.log_path.read_text().splitlines()[-1]}; {again}"

    def files_of_a_run(self) -> str:
        run = Run.create(self._at("files_of_a_run"), config_yaml="", config_json="")
        for path in (run.config_path, run.config_json_path, run.journal_path, run.lock_path, run.heartbeat_path):
            path.write_bytes(self._evil + b"\n")
        (run.control_dir / "0-1.command").write_bytes(self._evil)
        told = [self._run(command, run.path) for command in ("checkpoints", "plot", "verify")]
        told += [self._run("runs", run.path.parent), self._run("train", "--resume", run.path)]
        return "; ".join(told)

    def checkpoint_as_pickle(self) -> str:
        folder, out = self._at("checkpoint_as_pickle"), self._at("packages")
        (folder / "config.json").write_text((self._model / "unet" / "config.json").read_text())
        torch.save(Evil(self._canary), folder / "diffusion_pytorch_model.bin")
        told = [self._run("package", folder, "--base", self._model, "--out", out / "a")]
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(self._evil)
        told.append(self._run("package", folder, "--base", self._model, "--out", out / "b"))
        told.append(self._run("extract-lora", folder, "--base", self._model, "--out", out / "c.safetensors"))
        return "; ".join(told)

    def lora_as_pickle(self) -> str:
        folder = self._at("lora_as_pickle")
        for name in ("lora.safetensors", "lora.bin", "lora.ckpt"):
            torch.save(Evil(self._canary), folder / name)
        return "; ".join(
            self._run("install-invokeai", path, "--url", "http://127.0.0.1:9") for path in folder.iterdir()
        )

    # Configs and pictures

    def yaml_tags(self) -> str:
        path = self._at("yaml_tags") / "config.yaml"
        tags = ("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system")
        told = []
        for tag in tags:
            path.write_text(f"seed: !!{tag} ['touch {self._canary}']\n")
            told.append(self._run("check", path))
        return "; ".join(told)

    def captions_and_settings(self) -> str:
        """Texts that a shell, a template or a format string would run."""
        touch = f"touch {self._canary}"
        values = (f"$({touch})", f"`{touch}`", f"; {touch}", f"{{__import__('os').system('{touch}')}}", f"| {touch}")
        jsonl = self._jsonl.with_name("evil.jsonl")
        jsonl.write_text("".join(json.dumps({"image": "0.png", "text": value}) + "\n" for value in values))
        told = [self._run("check", value) for value in values]
        return "; ".join([self._train(self._model, jsonl), *told])

    def pictures(self) -> str:
        """A pickle, and PostScript that Pillow would hand to Ghostscript, both named as pictures."""
        folder = self._at("hostile_pictures")
        Image.new("RGB", (64, 64)).save(folder / "good.png")
        (folder / "pickle.png").write_bytes(self._evil)
        eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(%pipe%touch CANARY) (w) file\n%%EOF\n"
        (folder / "script.png").write_text(eps.replace("CANARY", str(self._canary)))
        (folder / "script.eps").write_text(eps.replace("CANARY", str(self._canary)))
        jsonl = folder / "data.jsonl"
        names = ("good.png", "pickle.png", "script.png", "script.eps")
        jsonl.write_text("".join(json.dumps({"image": name, "text": "x"}) + "\n" for name in names))
        return self._train(self._model, jsonl, train_batch_size=1)

    def dataset_script(self) -> str:
        """A local data set in the old form, with a loading script."""
        folder = self._at("dataset_script")
        (folder / "dataset_script.py").write_text(self._script)
        dataset = {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": str(folder)}
        loader = {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": dataset, "resolution": 64}
        return self._train(self._model, data_loader=loader)


def main() -> None:
    model, folder = (Path(argument).absolute() for argument in sys.argv[1:])
    vectors = Vectors(model, folder)
    names = [name for name in vars(Vectors) if not name.startswith("_")]
    auditor = Auditor(folder)
    outcomes: dict[str, str] = {}
    for name in names:
        auditor.vector = name
        auditor.is_on = True
        try:
            outcomes[name] = getattr(vectors, name)()
        finally:
            auditor.is_on = False
    # What the vectors would have done, to see that the hook hears it.
    auditor.is_on = True
    heard = len(auditor.seen)
    pickle.loads(pickle.dumps(Evil(folder / "heard")))
    auditor.is_on = False
    told = {
        "outcomes": outcomes,
        "seen": auditor.seen[:heard],
        "is_canary_there": (folder / "canary").exists(),
        "is_hook_deaf": len(auditor.seen) == heard,
        "num_runs": len(find_runs(folder)),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
