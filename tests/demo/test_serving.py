"""The server: what it answers, what it refuses, and that it stays small. Requests are made as the page makes them."""

from __future__ import annotations

import json
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image

import focalnet
from focalnet.cli.main import main
from focalnet.demo.serving import free_port, load_models
from focalnet.errors import ConfigError
from tests.demo.conftest import Served

pytest.importorskip("gradio")
WEIGHTS = Path(focalnet.__file__).parent / "weights" / "embedded" / "focalnet_nano.cifar10.safetensors"


class Client:
    """What a browser does: uploads, asks and waits for the answer."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc
        self.session = secrets.token_hex(8)
        self.config = json.loads(self.request("GET", "/config")[1])

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = HTTPConnection(self.host, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "image.png") -> tuple[int, Any]:
        mark = "----mark"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        status, answer = self.request("POST", "/gradio_api/upload", body, kind)
        return status, json.loads(answer)[0] if status == 200 else answer

    def join(self, path: str | None, handler: str = "start", **changes: Any) -> int:
        """Puts a request into the queue and returns the status."""
        (found,) = [d for d in self.config["dependencies"] if d["api_name"] == handler][:1]
        by_id = {c["id"]: c["props"] for c in self.config["components"]}
        data = [by_id[i].get("value") for i in found["inputs"]]
        data[0] = None if path is None else {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        for position, value in changes.items():
            data[int(position.removeprefix("at_"))] = value
        body = json.dumps({"data": data, "fn_index": found["id"], "session_hash": self.session}).encode()
        return self.request("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})[0]

    def ask(self, path: str | None, handler: str = "start", **changes: Any) -> str:
        """Puts a request into the queue and returns all that the server says until it is answered."""
        assert self.join(path, handler, **changes) == 200
        status, answer = self.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        assert status == 200
        return answer.decode()


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.address)


def png(size: tuple[int, int] = (64, 64), color: str = "green") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_uploaded_image_is_explained(client):
    status, path = client.upload(png())
    assert status == 200
    answer = client.ask(path)
    assert '"success":true' in answer.replace(" ", "")
    assert "context cam" in answer
    assert client.request("GET", f"/gradio_api/file={path}") == (200, png())


def test_the_first_explanation_takes_less_than_a_second_of_cpu(client, served):
    """Of the server, for an image that it has not seen, with all drawings."""
    before = served.cpu_seconds()
    _, path = client.upload(png((500, 400), "blue"))
    assert "context cam" in client.ask(path)
    assert served.cpu_seconds() - before < 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "drawing (SVG)"), (b"text", "is not an image"), (b"", "is empty")],
)
def test_what_is_no_image_is_answered_with_a_message(content, said, client):
    _, path = client.upload(content, "a.svg")
    assert said in client.ask(path)


def test_too_many_bytes_are_refused(client):
    connection = HTTPConnection(client.host, timeout=30)
    connection.request("POST", "/gradio_api/upload", headers={"Content-Length": str(1 << 26)})
    assert connection.getresponse().status == 413
    connection.close()
    settings = {"Content-Length": str(1 << 19), "Content-Type": "application/json"}
    connection.request("POST", "/gradio_api/queue/join", headers=settings)
    assert connection.getresponse().status == 413
    connection.close()
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


@pytest.mark.parametrize(
    "name", ["x" * 3000 + ".png", "../../../../tmp/evil.png", "..%2f..%2fevil.png", "a\\..\\b.png", "é✓.png"]
)
def test_names_of_uploads_stay_in_the_folder(name, client, served):
    status, path = client.upload(png(), quote(name, safe="./\\%"))
    assert status in (200, 400, 500)
    if status == 200:
        assert Path(path).resolve().is_relative_to(served.folder)
        assert "context cam" in client.ask(path)


def spellings(path: str, upload: Path) -> list[str]:
    """Ways to ask for a file that the page does not serve, given the folder of its uploads."""
    up, escaped = "../" * 12, quote(path, safe="")
    files = [
        path, f"/{path}", escaped, quote(escaped, safe=""), f"{upload}/{up}{path}",
        f"{upload}/..%2f..%2f..%2f..{escaped}", f"file://{path}", f"{path}%00.png", f"{path}/",
        f".{path}", f"{up}{path}", f"//{path}", f"/./{path}", f"{path}?a=b", path.upper(), f"~root/..{path}",
        f"/proc/self/root{path}",
    ]  # fmt: skip
    others = [
        "/file=", "/gradio_api/file/", "/gradio_api/proxy=file://", f"/static/{up}", f"/assets/{up}",
        f"/theme.css/{up}", f"/gradio_api/custom_component/0/client/component/{up}",
        "/gradio_api/stream/", "/static/" + "..%2f" * 9,
    ]  # fmt: skip
    return [*(f"/gradio_api/file={each}" for each in files), *(f"{route}{path}" for route in others)]


@pytest.mark.parametrize("path", ["/etc/passwd", str(WEIGHTS), "/proc/self/environ", str(Path(__file__).resolve())])
def test_no_file_outside_the_folder_is_served(path, client, served):
    content = Path(path).read_bytes()[:60]
    assert len(content) > 20
    for spelling in spellings(path, served.folder):
        status, body = client.request("GET", spelling)
        assert content[:20] not in body, spelling
        assert status >= 400, spelling


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(WEIGHTS), "http://127.0.0.1:1/a.png", "file:///etc/passwd", "/dev/zero", "."]
)
def test_no_file_outside_the_folder_is_taken_as_an_upload(path, client):
    assert client.join(path) == 403
    assert client.join(None, at_1={"deep": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}) == 403
    assert client.request("POST", "/gradio_api/queue/join", b'{"data": [{"path"', {"Content-Type": "a"})[0] == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"), ("GET", "/docs"), ("GET", "/monitoring"), ("GET", "/login"),
        ("GET", "/gradio_api/vibe-code"), ("POST", "/gradio_api/vibe-edit"), ("POST", "/gradio_api/call/start"),
        ("POST", "/gradio_api/run/start"), ("POST", "/gradio_api/process_recording"), ("PUT", "/"),
        ("DELETE", "/config"), ("GET", "/gradio_api/deep_link"), ("GET", "/openapi.json"),
        ("GET", "/gradio_api/runs"), ("OPTIONS", "/"),
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_use_are_closed(method, path, client):
    assert client.request(method, path, b"{}" if method == "POST" else None)[0] == 404


def test_no_address_is_fetched_for_a_client(client):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/a.png"
        assert client.request("GET", f"/gradio_api/file={address}")[0] == 403
        assert client.join(address) == 403
        with pytest.raises(TimeoutError):
            other.accept()


def test_other_sites_and_names_are_refused(client):
    assert client.request("GET", "/", headers={"Host": "evil.example"})[0] == 403
    assert client.request("GET", "/", headers={"Host": "[bad"})[0] in (400, 403)
    assert client.request("GET", "/", headers={"Origin": "http://evil.example"})[0] == 403
    assert client.request("GET", "/", headers={"Host": f"localhost:{client.host.split(':')[1]}"})[0] == 200


def test_the_page_asks_nothing_of_others(client):
    _, page = client.request("GET", "/")
    assert b"fonts.googleapis" not in page
    assert b"cdnjs" not in page
    assert client.config["analytics_enabled"] is False
    connection = HTTPConnection(client.host, timeout=30)
    connection.request("GET", "/")
    policy = connection.getresponse().getheader("Content-Security-Policy") or ""
    connection.close()
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_a_client_that_leaves_does_not_block_the_queue(client, served):
    _, path = client.upload(png((96, 96), "orange"))
    for _ in range(12):  # asks and never listens
        assert Client(served.address).join(path) == 200
    half = socket.create_connection(tuple(client.host.split(":")), timeout=30)  # begins an upload and stops
    half.sendall(b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n"
                 b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x")  # fmt: skip
    assert "context cam" in client.ask(path)
    half.close()


def test_200_requests_of_16_clients_are_answered_with_flat_memory(served):
    images = [png((120 + i, 100), f"hsl({7 * i}, 80%, 50%)") for i in range(50)]
    resident = []

    def visit(number: int) -> bool:
        client = Client(served.address)
        _, path = client.upload(images[number % 50])
        answer = client.ask(path)
        if number % 10 == 0:
            resident.append(served.resident_bytes())
        return "context cam" in answer and '"success":true' in answer.replace(" ", "")

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(visit, range(200)))
    assert max(resident[10:]) - max(resident[:10]) < 60 << 20, resident


def test_a_port_that_is_taken_ends_with_a_way_out(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --port: 127.0.0.1:{port} cannot be listened on")
    assert "choose another --port, or 0 for any free one" in line


@pytest.mark.parametrize("host", ["no such host", "256.1.1.1", "192.0.2.1"])
def test_a_wrong_host_is_named(host):
    with pytest.raises(ConfigError, match="--host"):
        free_port(host, 0)
    assert free_port("127.0.0.1", 0) > 0


def test_models_are_named_by_their_folder_and_file(tmp_path):
    for folder in ("a/run", "b/run", "b/other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").symlink_to(WEIGHTS)
    files = [str(tmp_path / folder / "model.safetensors") for folder in ("a/run", "b/run", "b/other")]
    models = load_models([*files, files[0], "focalnet_nano.cifar10"], "cpu")
    assert list(models) == [
        "run/model.safetensors", "run/model.safetensors (2)", "other/model.safetensors", "focalnet_nano.cifar10"
    ]  # fmt: skip
