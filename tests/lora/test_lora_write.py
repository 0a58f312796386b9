"""Writing LoRAs, where they come from, and the command line."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.lora_files import factors, network, run, write
from tests.helpers.tiny_family import make_family
from tests.lora.test_lora_stack import pairs
from trellis_core.cli.lora import parse_lora, split_strength
from trellis_core.cli.main import main
from trellis_core.errors import InputError, WeightsError
from trellis_core.files import locked
from trellis_core.lora.apply import Use, attach
from trellis_core.lora.read import read_lora
from trellis_core.lora.source import find_lora


def answer(model, *uses):
    on = attach(model, [Use(adapter, strength) for path, strength in uses for adapter in read_lora(path).adapters])
    try:
        return run(model)
    finally:
        on.remove()


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.mark.parametrize("form", ["peft", "comfy", "kohya"])
def test_converting_keeps_the_answer(model, tmp_path, form):
    source = write(tmp_path / "source", "kohya", factors(model))
    out = tmp_path / "out.safetensors"
    assert main(["lora", "convert", str(source), "-o", str(out), "--format", form, "--dtype", "fp32"]) == 0
    torch.testing.assert_close(answer(model, (out, 1.0)), answer(model, (source, 1.0)), atol=1e-5, rtol=0)


def test_a_peft_folder_can_be_written(model, tmp_path):
    source = write(tmp_path / "source", "generic", factors(model))
    assert main(["lora", "convert", str(source), "-o", str(tmp_path / "folder"), "--dtype", "fp32"]) == 0
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.testing.assert_close(answer(model, (tmp_path / "folder", 1.0)), answer(model, (source, 1.0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["generic", "loha", "lokr", "difference"])
def test_a_baked_strength_is_that_strength(model, tmp_path, form):
    source, out = write(tmp_path / "source", form, factors(model)), tmp_path / "out.safetensors"
    assert main(["lora", "scale", str(source), "-0.3", "-o", str(out), "--dtype", "fp32"]) == 0
    torch.testing.assert_close(answer(model, (out, 1.0)), answer(model, (source, -0.3)), atol=1e-5, rtol=0)


def test_what_is_written_needs_no_alpha(model, tmp_path):
    """Programs that take a missing alpha for the rank must get the same: alpha is the rank in every layer."""
    source, out = write(tmp_path / "source", "generic", factors(model)), tmp_path / "out.safetensors"
    main(["lora", "scale", str(source), "0.5", "-o", str(out), "--dtype", "fp32"])
    save_file(load_file(out), tmp_path / "bare.safetensors")
    assert torch.equal(answer(model, (out, 1.0)), answer(model, (tmp_path / "bare.safetensors", 1.0)))


def test_merging_is_stacking(model, tmp_path):
    files = [write(tmp_path / str(i), "generic", factors(model, seed=i)) for i in range(2)]
    out = tmp_path / "out.safetensors"
    assert main(["lora", "merge", f"{files[0]}:0.5", f"{files[1]}:-1.5", "-o", str(out), "--dtype", "fp32"]) == 0
    assert read_lora(out).adapters[0].ranks == (8,)
    torch.testing.assert_close(answer(model, (out, 1.0)), answer(model, (files[0], 0.5), (files[1], -1.5)), atol=1e-5, rtol=0)


def test_pressing_keeps_the_best_part(model, tmp_path):
    """To the full rank nothing is lost; below, the error is what the left out singular values say."""
    source, out = write(tmp_path / "source", "generic", factors(model)), tmp_path / "out.safetensors"
    for rank in (4, 2):
        assert main(["lora", "convert", str(source), "-o", str(out), "--dtype", "fp32", "--rank", str(rank)]) == 0
        (name, before), after = list(read_lora(source).adapters[0].deltas.items())[0], read_lora(out).adapters[0].deltas
        exact = before.matrix(torch.empty(0))
        left_out = torch.linalg.svdvals(exact)[rank:].norm()
        assert after[name].rank == rank
        assert (after[name].matrix(torch.empty(0)) - exact).norm().item() == pytest.approx(left_out.item(), abs=1e-4)


def test_a_dora_takes_no_strength(model, tmp_path, capsys):
    state = pairs() | {"diffusion_model.blocks.0.mlp.mlp.0.dora_scale": torch.ones(48, 1)}
    save_file(state, tmp_path / "dora.safetensors")
    assert main(["lora", "scale", str(tmp_path / "dora.safetensors"), "0.5", "-o", str(tmp_path / "o.safetensors")]) == 1
    assert "DoRA" in capsys.readouterr().err and not (tmp_path / "o.safetensors").exists()


def test_several_stages_go_into_one_file(tmp_path):
    for i, front in enumerate(("structure_model", "shape2txt")):
        save_file(pairs(f"diffusion_model.{front}.", seed=i), tmp_path / f"{front}.safetensors")
    out = tmp_path / "both.safetensors"
    files = [str(tmp_path / f"{front}.safetensors") for front in ("structure_model", "shape2txt")]
    assert main(["lora", "merge", *files, "-o", str(out)]) == 0
    assert {(a.stage, a.resolution) for a in read_lora(out).adapters} == {("structure", None), ("texture", 1024)}


def test_info_says_how_a_file_fits(tmp_path, capsys):
    root = make_family(tmp_path / "tiny")
    save_file(pairs(), tmp_path / "texture_512.safetensors")
    assert main(["lora", "info", str(tmp_path / "texture_512.safetensors"), "--weights", str(root)]) == 0
    assert "tex_slat_flow_model_512" in capsys.readouterr().out
    assert main(["lora", "info", str(tmp_path / "texture_512.safetensors")]) == 0
    assert "texture 512, guessed" in capsys.readouterr().out


def test_the_option_is_read(tmp_path):
    file = tmp_path / "a:b.safetensors"
    file.touch()
    found = parse_lora(f"shape-512={file}:-0.5")
    assert (found.path, found.strength, found.stage, found.resolution) == (file, -0.5, "shape", 512)
    assert parse_lora(str(file)).stage is None
    assert split_strength(str(file)) == (str(file), 1.0)
    assert split_strength("https://example.com/x.safetensors") == ("https://example.com/x.safetensors", 1.0)
    with pytest.raises(InputError, match='"geometri" is not a stage'):
        parse_lora(f"geometri={tmp_path.name}")


# Where LoRAs come from


def test_names_stay_inside_their_folders(tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "secret.safetensors").touch()
    (tmp_path / "loras" / "gold.safetensors").touch()
    (tmp_path / "loras" / "out.safetensors").symlink_to(tmp_path / "secret.safetensors")
    folders = [tmp_path / "loras"]
    for text in ("gold", "gold.safetensors", str(tmp_path / "loras" / "gold.safetensors")):
        assert find_lora(text, folders) == (tmp_path / "loras" / "gold.safetensors").resolve()
    for text in ("../secret", str(tmp_path / "secret.safetensors"), "out", "/etc/hostname", ".", "file:///etc/hostname"):
        with pytest.raises(InputError):
            find_lora(text, folders)


@pytest.fixture
def server(tmp_path):
    save_file(pairs(), tmp_path / "served.safetensors")
    data = (tmp_path / "served.safetensors").read_bytes()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            answers = {"/lora": (200, data), "/page": (200, b"<html>hello</html>")}
            status, body = answers.get(self.path, (404, b""))
            size = str(5 << 30) if self.path == "/huge" else str(len(body))
            status = {"/inward": 302, "/huge": 200}.get(self.path, status)
            self.send_response(status)
            self.send_header("Content-Length", size)
            if status == 302:
                self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{httpd.server_port}", data
    httpd.shutdown()
    httpd.server_close()


def test_addresses(server, tmp_path):
    host, data = server
    cache = tmp_path / "cache"
    first, again = (find_lora(f"http://{host}/lora", cache=cache, trusted=[host]) for _ in range(2))
    assert first == again and first.read_bytes() == data
    for path, error, words in (
        ("page", WeightsError, "safetensors"),
        ("missing", InputError, "404"),
        ("huge", InputError, "larger"),
        ("inward", InputError, "private"),
    ):
        with pytest.raises(error, match=words):
            find_lora(f"http://{host}/{path}", cache=cache, trusted=[host])
    with pytest.raises(InputError, match="private"):
        find_lora(f"http://{host}/lora", cache=cache)
    assert {file.name for file in cache.iterdir()} == {first.name, ".lock"}, "nothing half fetched may stay"


def test_several_fetch_into_one_cache(server, tmp_path, monkeypatch):
    host, data = server
    cache = tmp_path / "cache"
    monkeypatch.setattr("trellis_core.lora.source.CACHE_BYTES", 1)
    killed, busy = cache / ".new-killed", cache / ".new-busy"
    for folder in (killed, busy):
        folder.mkdir(parents=True)
        (folder / "lora.safetensors").write_bytes(data[:100])
    (cache / "old.safetensors").write_bytes(data)
    found = []

    def fetch():
        found.append(find_lora(f"http://{host}/lora", cache=cache, trusted=[host]))

    with locked(busy / "lock"):
        threads = [threading.Thread(target=fetch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 6 and {path.read_bytes() for path in found} == {data}
    assert {file.name for file in cache.iterdir()} == {found[0].name, ".lock", ".new-busy"}


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be made"):
        find_lora(f"http://{server[0]}/lora", cache=tmp_path / "file" / "cache", trusted=[server[0]])
