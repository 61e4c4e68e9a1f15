"""Model names to models: bundled, folders, compositions, and a hub that stands on this machine."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file

from sca_batch import load_model
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import published_state
from sca_batch.model.hub import Composition, locate
from sca_batch.model.load import resolve_device, resolve_dtype
from sca_batch.model.names import MODELS

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_a_model(golden):
    model = load_model(golden / "gpt2-box", device="cpu")
    assert model.device == torch.device("cpu")
    assert model.autocast_dtype is None
    assert model.tokenizer is None
    assert not model.training
    assert load_model(str(golden / "anything"), device="cpu").tokenizer is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "float16"])
def test_half_precision_is_autocast_and_comes_close(golden, dtype):
    plain = load_model(golden / "gpt2-box", device="cpu")
    half = load_model(golden / "gpt2-box", device="cpu", dtype=dtype)
    assert half.autocast_dtype == (torch.float16 if dtype == "float16" else torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    pixels = load_file(golden / "gpt2-box" / "inputs.safetensors")["pixel_values"]
    with torch.inference_mode():
        exact, rough = plain.encode_image(pixels), half.encode_image(pixels)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).norm() / exact.norm() < 0.05


def test_auto_is_float32_on_a_cpu():
    assert resolve_dtype("auto", torch.device("cpu")) is None
    assert resolve_dtype("float32", torch.device("cuda")) is None
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "mps", "meta", ""])
def test_a_device_that_is_not_there_is_refused(golden, device):
    with pytest.raises(ScaError, match="device"):
        load_model(golden / "gpt2-box", device=device)


def test_an_unknown_dtype_is_refused(golden):
    with pytest.raises(ScaError, match="dtype 'int8': expected auto, float32"):
        load_model(golden / "gpt2-box", dtype="int8")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sca-tny", r"Did you mean sca-tiny\?"),
        ("SCA-tiny", r"Did you mean sca-tiny\?"),
        ("gpt2_large-vg", r"sca model list"),
        ("segment-caption-anything-gpt2_large-vgg", "xk-huang/segment-caption-anything-gpt2_lar"),
        ("./nowhere", "Expected a checkpoint folder"),
        ("one/two/three", "Expected a checkpoint folder"),
        ("", "an empty model name"),
        ("sam=x", r"no lm=\.\.\."),
        ("sam=x,lm=y,mixer=z,sam=w", "'sam=w' is not one of"),
        ("sam=x,lm=y,mixer=,", "'mixer=' is not one of"),
        ("sam=./x,lm=./y,mixer=./z", r"mixer=\./z: no such folder or file"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_what_to_type(name, hint):
    with pytest.raises(ScaError, match=hint) as caught:
        locate(name)
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_similar_name_is_proposed(golden):
    with pytest.raises(ScaError, match=r"Did you mean .*gpt2-box"):
        locate(golden / "gpt2-bx")


def test_a_file_is_no_model(golden):
    with pytest.raises(ScaError, match="is a file; expected a checkpoint folder"):
        locate(golden / "gpt2-box" / "model.safetensors")


def test_a_model_that_needs_another_class_is_refused_by_its_name(golden, tmp_path):
    raw = json.loads((golden / "gpt2-box" / "config.json").read_text())
    raw["architectures"] = ["ScaDirectDecodingV2Model"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ScaError, match=r"ScaDirectDecodingV2Model"):
        load_model(tmp_path)


def test_the_published_models_are_listed_with_their_scores():
    published = {name: facts for name, facts in MODELS.items() if not facts.bundled}
    assert [(facts.cider, facts.meteor) for facts in published.values()] == [
        (148.8, 17.4),
        (149.8, 17.4),
        (149.8, 17.5),
        (None, None),
    ]


def test_a_composition_names_three_places(golden, tmp_path):
    lm = tmp_path / "lm"
    whole = load_model(golden / "gpt2-box", device="cpu")
    whole.language_model.save_pretrained(lm)
    name = f"sam={golden / 'gpt2-box'},lm={lm},mixer={golden / 'gpt2-box' / 'model.safetensors'}"
    parts = locate(name)
    assert isinstance(parts, Composition)
    assert parts.language_model == lm
    composed = load_model(name, device="cpu")
    first, second = published_state(composed), published_state(whole)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as its own client asks for; each repository is a folder."""

    folders: dict[str, Path]
    downloads: list[str]

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            return self.answer_api("/".join(path[2:4]), path[4:])
        if len(path) > 4 and path[2] == "resolve":
            return self.answer_file("/".join(path[:2]), path[3], "/".join(path[4:]))
        return self.answer(404, b"")

    do_HEAD = do_GET  # noqa: N815

    def answer_api(self, repository, rest):
        if repository == "someone/gated":
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if repository not in self.folders:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if rest[0] == "revision" and rest[1] not in ("main", "v1", COMMIT):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in self.folders[repository].rglob("*") if path.is_file())
        names = [str(path.relative_to(self.folders[repository])) for path in files]
        if rest[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
            return self.answer(200, json.dumps(tree).encode())
        siblings = [{"rfilename": name} for name in names]
        reply = {"id": repository, "sha": COMMIT, "siblings": siblings}
        return self.answer(200, json.dumps(reply).encode())

    def answer_file(self, repository, revision, name):
        path = self.folders[repository] / name
        if not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.downloads.append(f"{repository}/{name}")
        etag = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, path.read_bytes(), etag)

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def hub(golden, tmp_path_factory):
    """Serves three repositories; yields (address, names of downloaded files)."""
    home = tmp_path_factory.mktemp("hub")
    for name in ("safe", "pickle", "gpt2-tokenizer"):
        (home / name).mkdir()
    both = golden / "gpt2-box"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(both / name, home / "safe" / name)
    # What a repository holds besides, and nobody should wait for.
    (home / "safe" / "pytorch_model.bin").write_bytes(b"large")
    (home / "safe" / "checkpoint-500").mkdir()
    (home / "safe" / "checkpoint-500" / "model.safetensors").write_bytes(b"large")
    (home / "safe" / "tf_model.h5").write_bytes(b"large")
    shutil.copy(golden / "gpt2-points-labels" / "pytorch_model.bin", home / "pickle")
    raw = json.loads((golden / "gpt2-points-labels" / "config.json").read_text())
    raw["text_config"]["_name_or_path"] = "someone/gpt2-tokenizer"
    (home / "pickle" / "config.json").write_text(json.dumps(raw))
    shutil.copy(golden / "data-pipeline" / "tokenizer.json", home / "gpt2-tokenizer")

    Hub.folders = {f"someone/{path.name}": path for path in home.iterdir()}
    Hub.downloads = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.downloads
    server.shutdown()
    server.server_close()
    thread.join()


# The hub client reads its settings when it is imported: a process of its own.
ASK = """
import json, sys
from sca_batch.errors import ScaError
from sca_batch.model.load import load_model
for name in sys.argv[1:]:
    try:
        model = load_model(name, device="cpu")
        print(json.dumps([model.config.mixer_layers, model.tokenizer is not None]))
    except ScaError as error:
        print(json.dumps(str(error)))
"""


def ask(names, cache, **environment):
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_come_from_the_hub_once_and_refusals_are_one_line_each(hub, tmp_path):
    address, downloads = hub
    names = ["someone/safe@v1", "someone/pickle", "someone/safe@v9", "someone/gated", "no/where"]
    safe, pickled, revision, gated, unknown = ask(names, tmp_path, HF_ENDPOINT=address)
    assert safe == [3, False]
    assert pickled == [3, True]  # the tokenizer is the language model's, from its own repository
    assert sorted(downloads) == [
        "someone/gpt2-tokenizer/tokenizer.json",
        "someone/pickle/config.json",
        "someone/pickle/pytorch_model.bin",
        "someone/safe/config.json",
        "someone/safe/model.safetensors",
    ]
    assert "no revision 'v9'" in revision
    assert "hf auth login" in gated
    assert "its owner asks for an agreement" in gated
    assert "no such model on the hub" in unknown
    assert not any("\n" in line for line in (revision, gated, unknown))

    # A port where nobody listens: what is there goes on working, the rest says what to do.
    published = "xk-huang/segment-caption-anything-gpt2_large-vg"
    names = ["someone/pickle", published, f"{published}g"]
    cached, absent, near = ask(names, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert cached == [3, True]
    assert "not in the hub's cache, and the hub cannot be reached" in absent
    assert "use the bundled --model sca-tiny" in absent
    assert "Did you mean" not in absent
    assert f"Did you mean {published}" in near
