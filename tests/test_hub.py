"""Models of the Hugging Face hub: from its cache, and over the library's own client from a hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants

import clipedit
from clipedit import ExportError, ModelError, RecipeError, VerificationError
from clipedit.editor.edits.bind import bind_recipe
from clipedit.editor.edits.document import Base, RecipeDocument, Step, format_document
from clipedit.editor.images.demo import demo_calibration_source
from clipedit.editor.images.demo_name import demo_folder
from clipedit.editor.load import split_name
from clipedit.editor.models.architecture import load_architecture
from clipedit.editor.models.hub import reach
from clipedit.export.edited_folder import write_edited_model
from clipedit.export.push import list_uploads, push_folder, read_licence

pytestmark = pytest.mark.usefixtures("one_thread", "verified_here")
FIRST, SECOND = "1" * 40, "2" * 40
WEIGHTS = "open_clip_model.safetensors"


@dataclass
class LoopbackHub:
    """A hub: files by commit, what branches and tags point to, and every request that was made."""

    address: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)
    posted: list[dict[str, Any]] = field(default_factory=list)
    # What every request to write is answered, where it is not 200.
    refusing: int | None = None

    def add(self, repo: str, commit: str, files: dict[str, bytes], *refs: str) -> None:
        self.commits[f"{repo}@{commit}"] = files
        self.refs |= {f"{repo}@{ref}": commit for ref in refs}

    def resolve(self, repo: str, revision: str) -> str | None:
        commit = self.refs.get(f"{repo}@{revision}", revision)
        return commit if f"{repo}@{commit}" in self.commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str) -> None:
        self.answer(401 if code == "GatedRepo" else 404, X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if path == "":
            self.answer(200)
        elif "gated" in path:
            self.refuse("GatedRepo")
        elif parts[:2] == ["api", "models"]:
            kind, revision = (parts[4], "/".join(parts[5:])) if len(parts) > 4 else ("revision", "main")
            self.describe("/".join(parts[2:4]), kind, revision)
        elif "resolve" in parts:
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404)

    def describe(self, repo: str, kind: str, revision: str) -> None:
        commit = self.hub.resolve(repo, revision)
        if commit is None:
            known = any(key.startswith(f"{repo}@") for key in self.hub.commits)
            self.refuse("RevisionNotFound" if known else "RepoNotFound")
            return
        files = self.hub.commits[f"{repo}@{commit}"]
        listed = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
        private = self.hub.private.get(repo, False)
        info = {
            "id": repo,
            "private": private,
            "sha": commit,
            "siblings": [{"rfilename": name} for name in files],
            "tags": [],
        }
        self.answer(200, listed if kind == "tree" else info, Content_Type="application/json")

    def send_file(self, repo: str, revision: str, name: str) -> None:
        commit = self.hub.resolve(repo, revision)
        files = self.hub.commits.get(f"{repo}@{commit}", {})
        if name not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit or "")
            return
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        self.answer(200, files[name], ETag=etag, X_Repo_Commit=commit or "")

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.asked.append(f"POST {path}")
        parts = path.split("/")
        if self.hub.refusing is not None:
            self.answer(self.hub.refusing, {"error": "not to be had"}, Content_Type="application/json")
        elif path == "api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []}, Content_Type="application/json")
        else:
            repo = f"{json.loads(body)['organization']}/{json.loads(body)['name']}" if "create" in parts else None
            self.write(repo or "/".join(parts[2:4]), parts[4] if repo is None else "create", parts[5:], body)

    def write(self, repo: str, kind: str, revision: list[str], body: bytes) -> None:
        found: dict[str, Any] = {"url": f"{self.hub.address}/{repo}"}
        if kind == "create":
            # Later versions of the client say `visibility`, earlier ones `private`.
            asked = json.loads(body)
            self.hub.private[repo] = asked.get("visibility") == "private" or asked.get("private", False)
            self.hub.add(repo, "0" * 40, {".gitattributes": b""}, "main")
        elif kind == "branch":
            self.hub.refs[f"{repo}@{revision[0]}"] = self.hub.refs[f"{repo}@main"]
        elif kind == "preupload":
            # All in the commit itself: the large files of the real hub go to a store of their own.
            named = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            found = {"files": named}
        else:
            found = self.commit(repo, revision[0], [json.loads(line) for line in body.splitlines()])
        self.answer(200, found, Content_Type="application/json")

    def commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        before = self.hub.commits[f"{repo}@{self.hub.refs[f'{repo}@{revision}']}"]
        sent = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        commit = hashlib.sha1(json.dumps(lines).encode()).hexdigest()
        self.hub.add(repo, commit, {**before, **sent}, revision)
        self.hub.posted += [one["value"] for one in lines if one["key"] == "header"]
        return {"commitOid": commit, "commitUrl": f"{self.hub.address}/{repo}/commit/{commit}", "success": True}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub on this machine, and an empty cache."""
    found = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": found}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    template = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    reach.is_reachable.cache_clear()
    yield found
    reach.is_reachable.cache_clear()
    server.shutdown()
    server.server_close()


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same model with one number changed."""
    return {**files, WEIGHTS: files[WEIGHTS][:-4] + b"\0\0\0\0"}


def fill_cache(cache: Path, repo: str, commit: str, files: dict[str, bytes], *refs: str) -> None:
    """As the hub's client lays a repository out: links from snapshots into one folder of contents."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for name, data in files.items():
        blob, link = folder / "blobs" / hashlib.sha1(data).hexdigest(), folder / "snapshots" / commit / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in refs:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)


@pytest.fixture(scope="module")
def demo_files() -> dict[str, bytes]:
    return read_files(demo_folder())


@pytest.fixture(scope="module")
def small_scan(demo_model: clipedit.Model) -> clipedit.Scan:
    return clipedit.scan(demo_model, demo_calibration_source(128), workers=0)


@pytest.fixture(scope="module")
def edited(
    small_scan: clipedit.Scan, demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any], Path]:
    """A folder as `remove-heads` leaves it, by its effect; each is written once."""

    @cache
    def write(effect: Any) -> Path:
        recipe = clipedit.make_recipe(small_scan, demo_model, concept="location", effect=effect, heads=2)
        write_edited_model(recipe, demo_model, folder := tmp_path_factory.mktemp("edited") / "edited")
        return folder

    return write


@pytest.fixture(scope="module")
def exported(demo_model: clipedit.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clipedit.export_model(demo_model, folder := tmp_path_factory.mktemp("export") / "ours", target="open-clip")
    return folder


@pytest.fixture
def ready(exported: Path, tmp_path: Path) -> Path:
    """An export that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "ours"))


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A `CLIPModel` of transformers in two shards, with its own vocabulary."""
    folder = tmp_path_factory.mktemp("clip")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "num_attention_heads": 2, "vocab_size": 49408, "max_position_embeddings": 16},
        vision_config={**sizes, "num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder, max_shard_size="4MB")
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()
    return read_files(folder)


def test_a_repository_of_open_clip_is_loaded_and_named_by_its_commit(
    hub: LoopbackHub, demo_files: dict[str, bytes], demo_model: clipedit.Model
) -> None:
    other = {"pytorch_model.bin": b"not asked for", "training/optimizer.safetensors": b"neither", "README.md": b"text"}
    hub.add("ours/demo", FIRST, {**demo_files, **other}, "main")
    model = clipedit.load_model("hf-hub:ours/demo")
    assert model.name == f"hf-hub:ours/demo@{FIRST}" and model.weights_hash == demo_model.weights_hash
    assert torch.equal(model.encode_text(["a red circle"]), demo_model.encode_text(["a red circle"]))
    fetched = {line.split("resolve/")[1].partition("/")[2] for line in hub.asked if "resolve/" in line}
    assert WEIGHTS in fetched and not set(other) & fetched
    # Concepts and texts of a repository's own come with it.
    assert model.folder is not None and (model.folder / "concepts" / "location.yaml").is_file()


def test_revisions_are_pinned_and_what_is_in_the_cache_is_not_fetched_again(
    hub: LoopbackHub, demo_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("ours/demo", FIRST, demo_files, "v1")
    hub.add("ours/demo", SECOND, other_weights(demo_files), "main")
    newest, tagged = clipedit.load_model("hf-hub:ours/demo"), clipedit.load_model("hf-hub:ours/demo@v1")
    assert [model.name[-40:] for model in (newest, tagged)] == [SECOND, FIRST]
    assert newest.weights_hash != tagged.weights_hash
    assert clipedit.load_model(tagged.name).weights_hash == tagged.weights_hash
    got = [line for line in hub.asked if line.startswith("GET") and WEIGHTS in line]
    assert len(got) == 2
    # A branch is asked for anew, and offline the cache's last answer holds.
    hub.add("ours/demo", FIRST, demo_files, "main")
    assert clipedit.load_model("hf-hub:ours/demo").name == tagged.name
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = list(hub.asked)
    for name in ("hf-hub:ours/demo", "hf-hub:ours/demo@v1", f"hf-hub:ours/demo@{SECOND}"):
        assert clipedit.load_model(name).weights_hash == (newest if SECOND in name else tagged).weights_hash
    assert hub.asked == before


def test_a_sharded_repository_of_transformers_answers_as_its_folder(
    hub: LoopbackHub, clip_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("ours/clip", FIRST, clip_files, "main")
    folder = tmp_path / "clip"
    folder.mkdir()
    for name, data in clip_files.items():
        (folder / name).write_bytes(data)
    fetched, local = clipedit.load_model("hf-hub:ours/clip"), clipedit.load_model(f"hf:{folder}")
    assert fetched.name == f"hf-hub:ours/clip@{FIRST}"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fetched.encode_image(pixels), local.encode_image(pixels))
    assert torch.equal(fetched.encode_text(["a photo"]), local.encode_text(["a photo"]))


@pytest.mark.parametrize("made_by", ["hand", "client"])
def test_a_filled_cache_needs_no_hub(
    made_by: str,
    hub: LoopbackHub,
    demo_files: dict[str, bytes],
    clip_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repositories = {"ours/demo": demo_files, "ours/clip": clip_files}
    for repo, files in repositories.items():
        if made_by == "hand":
            fill_cache(Path(constants.HF_HUB_CACHE), repo, FIRST, files, "main")
        else:
            hub.add(repo, FIRST, files, "main")
            clipedit.load_model(f"hf-hub:{repo}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    before = list(hub.asked)
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for repo in repositories:
            for revision in ("", "@main", f"@{FIRST}"):
                assert clipedit.load_model(f"hf-hub:{repo}{revision}").name == f"hf-hub:{repo}@{FIRST}"
    assert hub.asked == before


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_not_in_the_cache_is_said_within_seconds(
    offline: bool, hub: LoopbackHub, demo_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small files lie there, the weights do not.
    small = {name: data for name, data in demo_files.items() if name != WEIGHTS}
    fill_cache(Path(constants.HF_HUB_CACHE), "ours/small", FIRST, small, "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    for name in ("hf-hub:ours/none", f"hf-hub:ours/none@{FIRST}", "hf-hub:ours/small", "hf-hub:ours/small@v2"):
        with pytest.raises(ModelError) as caught:
            clipedit.load_model(name)
        said = str(caught.value)
        assert said.startswith(f"cannot load {name}: it is not in the cache") and "\n" not in said
        assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 cannot be reached") in said
        assert "`hf download ours/" in said
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf-hub:ours/none", "has no such repository, or it is private"),
        ("hf-hub:ours/demo@v9", "no such revision"),
        ("hf-hub:ours/gated", "accept their terms"),
        ("hf-hub:ours/text", "neither open_clip_config.json nor config.json"),
        ("hf-hub:ours/bare", "it has none of open_clip_model.safetensors"),
        ("hf-hub:ours/outside", "is not the name of a file beside it"),
        ("hf-hub:demo", "Write hf-hub:ORG/NAME"),
        ("hf-hub:", "Write hf-hub:ORG/NAME"),
        ("hf-hub:ours/demo@", "Write hf-hub:ORG/NAME"),
        ("hf-hub:ours/demo@../../x", "Write hf-hub:ORG/NAME"),
        ("hf-hub:../demo", "Write hf-hub:ORG/NAME"),
    ],
)
def test_what_a_hub_refuses_is_said_in_one_line(
    name: str, said: str, hub: LoopbackHub, demo_files: dict[str, bytes], clip_files: dict[str, bytes]
) -> None:
    hub.add("ours/demo", FIRST, demo_files, "main")
    hub.add("ours/text", FIRST, {"README.md": b"text"}, "main")
    hub.add("ours/bare", FIRST, {"open_clip_config.json": demo_files["open_clip_config.json"]}, "main")
    index = json.dumps({"weight_map": {"x": "../../outside.safetensors"}}).encode()
    outside = {"config.json": clip_files["config.json"], "model.safetensors.index.json": index}
    hub.add("ours/outside", FIRST, outside, "main")
    with pytest.raises(ModelError) as caught:
        clipedit.load_model(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_their_own_take_no_tag(hub: LoopbackHub) -> None:
    with pytest.raises(ModelError, match="holds its own weights"):
        clipedit.load_model("hf-hub:ours/demo", pretrained="openai")
    assert hub.asked == []


def test_a_recipe_keeps_the_commit_and_refuses_another_only_if_its_weights_differ(
    hub: LoopbackHub, demo_files: dict[str, bytes]
) -> None:
    hub.add("ours/demo", FIRST, demo_files, "v1")
    hub.add("ours/demo", SECOND, {**demo_files, "texts.txt": b"only a text\n"}, "v2")
    hub.add("ours/demo", "3" * 40, other_weights(demo_files), "v3")
    model = clipedit.load_model("hf-hub:ours/demo@v1")
    scan = clipedit.scan(model, demo_calibration_source(64), workers=0)
    assert scan.model_name == f"hf-hub:ours/demo@{FIRST}"
    steps = (Step(operation="mean-ablate", heads=("L3H1",)),)
    document = RecipeDocument(
        schema_version=1, name="one", base=Base(model=model.name), effect="distilled", steps=steps
    )
    recipe = bind_recipe(document, scan, model)
    assert recipe.document.base.model == f"hf-hub:ours/demo@{FIRST}"
    same = clipedit.apply_recipe(recipe, clipedit.load_model("hf-hub:ours/demo@v2"))
    assert same.weights_hash == clipedit.apply_recipe(recipe, model).weights_hash
    with pytest.raises(RecipeError) as caught:
        clipedit.apply_recipe(recipe, clipedit.load_model("hf-hub:ours/demo@v3"))
    assert f"hf-hub:ours/demo@{FIRST}" in str(caught.value) and f"hf-hub:ours/demo@{'3' * 40}" in str(caught.value)


@pytest.mark.parametrize("effect", ["distilled", "direct"])
def test_a_folder_that_clipedit_wrote_comes_back_with_its_edit(
    effect: Any, hub: LoopbackHub, edited: Callable[[Any], Path], demo_model: clipedit.Model
) -> None:
    hub.add("ours/edited", FIRST, read_files(edited(effect)), "main")
    fetched, local = clipedit.load_model("hf-hub:ours/edited"), clipedit.load_model(edited(effect))
    pixels = torch.randn(2, 3, *demo_model.image_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fetched.encode_image(pixels), local.encode_image(pixels))
    assert not torch.equal(fetched.encode_image(pixels), demo_model.encode_image(pixels))
    assert fetched.name == f"hf-hub:ours/edited@{FIRST}" and fetched.recipe is not None


def test_an_architecture_needs_no_weights(hub: LoopbackHub, demo_files: dict[str, bytes]) -> None:
    hub.add("ours/demo", FIRST, demo_files, "main")
    assert load_architecture("hf-hub:ours/demo").tower.n_layers == clipedit.load_model("demo").tower.n_layers
    assert not any(WEIGHTS in line for line in hub.asked)


def test_names_of_the_hub_are_whole() -> None:
    assert split_name("hf-hub:ours/demo@v1") == ("hf-hub:ours/demo@v1", None)


def test_the_command_line_reads_the_hub_that_the_environment_names(
    hub: LoopbackHub, demo_files: dict[str, bytes], tmp_path: Path, run: Callable[..., Any]
) -> None:
    hub.add("ours/demo", FIRST, demo_files, "main")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "clipedit", "concepts", "list", "--model", "hf-hub:ours/demo", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"location", "color"} <= {row["name"] for row in json.loads(done.stdout)}
    assert (tmp_path / "home" / "hub" / "models--ours--demo").is_dir()


def test_a_dry_run_lists_files_and_sends_nothing(
    hub: LoopbackHub, exported: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run("push", exported, "ours/demo", "--dry-run", "--exclude", "verification.s*", "--exclude", "reproduce/*")
    assert done.code == 0 and hub.asked == []
    sizes = {name: len(data) for name, data in read_files(exported).items()}
    listed = {line.split()[0]: line.split()[1] for line in done.out.splitlines() if line.strip()}
    for name, size in sizes.items():
        left_out = name.startswith(("reproduce/", "verification.s"))
        assert (name in listed) is not left_out and (left_out or listed[name] == f"{size:,}")
    whole = json.loads(run("push", exported, "ours/demo", "--dry-run", "--json").out)
    assert whole["dry_run"] and whole["bytes"] == sum(sizes.values()) and len(whole["files"]) == len(sizes)


def test_a_push_to_a_branch_says_what_it_leaves(hub: LoopbackHub, ready: Path, run: Callable[..., Any]) -> None:
    hub.add("ours/demo", FIRST, {"old.bin": b"old", "README.md": b"old"}, "main")
    done = run("push", ready, "ours/demo", "--license", "apache-2.0", "--public", "--branch", "edited")
    assert done.code == 0, done.err
    assert "left as they are in the repository: old.bin" in done.err and "verification.safetensors holds" in done.err
    assert hub.refs["ours/demo@main"] == FIRST != hub.refs["ours/demo@edited"]
    assert "POST api/repos/create" not in hub.asked
    assert clipedit.load_model("hf-hub:ours/demo@edited").name.endswith(hub.refs["ours/demo@edited"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no licence is named"),
        ({"licence": "MIT License"}, "is no licence of the hub"),
        ({"licence": "mit", "repository": "demo"}, "Write ORG/NAME"),
        ({"licence": "mit", "branch": "../x"}, "no name of a branch"),
        ({"licence": "mit", "repository": "ours/open"}, "it is public. Add --public"),
        ({"licence": "mit", "repository": "ours/shut", "public": True}, "it is private"),
    ],
)
def test_a_push_is_refused_before_anything_is_sent(
    options: dict[str, Any], said: str, hub: LoopbackHub, exported: Path
) -> None:
    hub.add("ours/open", FIRST, {}, "main")
    hub.add("ours/shut", FIRST, {}, "main")
    hub.private["ours/shut"] = True
    with pytest.raises(ExportError) as caught:
        push_folder(exported, options.pop("repository", "ours/new"), **options)
    assert said in str(caught.value) and not any(line.startswith("POST") for line in hub.asked)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_a_hub_refuses_of_a_push_is_said_in_one_line(status: int, hub: LoopbackHub, exported: Path) -> None:
    hub.refusing = status
    said = {401: "Log in: `hf auth login`", 403: "you may not write there", 500: "answered 500"}[status]
    with pytest.raises(ExportError) as caught:
        push_folder(exported, "ours/demo", licence="mit")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_a_push_without_a_hub_is_refused_within_seconds(
    offline: bool, hub: LoopbackHub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set" if offline else "cannot be reached"):
        push_folder(exported, "ours/demo", licence="mit")
    assert time.monotonic() - started < 10


def test_hidden_files_stay_here(ready: Path) -> None:
    for name in (".env", ".git/config", "__pycache__/x.pyc"):
        (ready / name).parent.mkdir(exist_ok=True)
        (ready / name).write_text("x")
    assert {one.name for one in list_uploads(ready)} == set(read_files(ready)) - {
        ".env",
        ".git/config",
        "__pycache__/x.pyc",
    }


def test_an_edit_that_harms_is_pushed_by_force_only(hub: LoopbackHub, ready: Path) -> None:
    evidence = {"evidence": {"verdict": "HARMS", "because": "worst group falls by 0.2."}}
    steps = (Step(operation="mean-ablate", heads=("L3H1",)),)
    document = RecipeDocument(
        schema_version=1, name="bad", base=Base(model="demo"), effect="distilled", steps=steps, measured=evidence
    )
    (ready / "reproduce" / "recipe.yaml").write_text(format_document(document))
    with pytest.raises(ExportError, match=r"its edit harms, worst group falls by 0\.2\. .* --force"):
        push_folder(ready, "ours/demo", licence="mit")
    assert hub.asked == []
    push_folder(ready, "ours/demo", licence="mit", force=True)
    assert "ours/demo" in hub.private


def test_a_card_that_names_its_licence_needs_no_other(hub: LoopbackHub, ready: Path) -> None:
    card = (ready / "README.md").read_text()
    (ready / "README.md").write_text(card.replace(card.splitlines()[1], "license: openrail  # ours"))
    assert read_licence(ready) == "openrail"
    with pytest.raises(ExportError, match=r"says openrail, --licence mit\. Correct one"):
        push_folder(ready, "ours/demo", licence="mit")
    pushed = push_folder(ready, "ours/demo")
    held = hub.commits[f"ours/demo@{pushed.name[-40:]}"]
    assert held["README.md"] == (ready / "README.md").read_bytes()


@pytest.mark.parametrize("card", [None, "# No head\n", "---\ntags: [clip]\n---\n\n# Head without\n"])
def test_any_card_gets_the_licence(card: str | None, ready: Path) -> None:
    (ready / "README.md").unlink()
    if card is not None:
        (ready / "README.md").write_text(card)
    (filled,) = [one.content for one in list_uploads(ready, licence="mit") if one.name == "README.md"]
    assert isinstance(filled, bytes)
    head = yaml.safe_load(filled.decode().split("---\n")[1])
    assert head["license"] == "mit" and filled.decode().count("license:") == 1


def test_a_terminal_is_asked_for_the_licence(
    hub: LoopbackHub, ready: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("typer.prompt", lambda text, **_: asked.append(text) or " mit ")
    done = run("push", ready, "ours/demo")
    assert done.code == 0, done.err
    assert len(asked) == 1 and b"license: mit" in hub.commits[f"ours/demo@{hub.refs['ours/demo@main']}"]["README.md"]


def test_a_push_makes_a_private_repository_from_which_the_model_comes_back(
    hub: LoopbackHub, edited: Callable[[Any], Path], run: Callable[..., Any]
) -> None:
    folder = edited("distilled")
    before = read_files(folder)
    done = run("push", folder, "ours/edited", "--licence", "mit", "-m", "heads of location removed", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    commit = hub.refs["ours/edited@main"]
    assert hub.private == {"ours/edited": True} and hub.posted[0]["summary"] == "heads of location removed"
    assert found["name"] == f"hf-hub:ours/edited@{commit}" and found["bytes"] == sum(f["bytes"] for f in found["files"])
    held = hub.commits[f"ours/edited@{commit}"]
    assert {one["name"] for one in found["files"]} == set(before) == set(held) - {".gitattributes"}
    # Only the card is another one there, by its licence; here nothing has changed.
    assert {name for name in before if held[name] != before[name]} <= {"README.md", "verification.json"}
    assert b"\nlicense: mit\n" in held["README.md"] and b"licence field is empty" not in held["README.md"]
    assert read_licence(folder) is None and read_files(folder)["README.md"] == before["README.md"]
    again = clipedit.load_model(found["name"])
    assert again.weights_hash == clipedit.load_model(folder).weights_hash and again.recipe is not None


def test_only_what_clipedit_wrote_and_verified_is_pushed(
    hub: LoopbackHub, ready: Path, tmp_path: Path, edited: Callable[[Any], Path]
) -> None:
    with pytest.raises(ExportError, match=r"has no verification\.json"):
        push_folder(demo_folder(), "ours/demo", licence="mit")
    (ready / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("not for others")
    with pytest.raises(ExportError, match=r"notes\.txt is a link that leads out"):
        push_folder(ready, "ours/demo", licence="mit")
    (ready / "notes.txt").unlink()
    changed = bytearray((ready / WEIGHTS).read_bytes())
    changed[-1] ^= 1
    (ready / WEIGHTS).write_bytes(changed)
    with pytest.raises(ExportError, match=rf"{WEIGHTS} is not what was written"):
        push_folder(ready, "ours/demo", licence="mit")
    other = Path(shutil.copytree(edited("distilled"), tmp_path / "edited"))
    (other / WEIGHTS).write_bytes((demo_folder() / WEIGHTS).read_bytes())
    with pytest.raises(VerificationError, match="does not compute what the edited model computes"):
        push_folder(other, "ours/demo", licence="mit")
    assert hub.asked == []
