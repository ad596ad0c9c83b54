"""Downloads from a server in this process: verified, cached, and nothing half done left behind."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from repro.data.download import download
from repro.errors import UserError

CONTENT = b"sixteen megabytes of features, in spirit"
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file.h5").write_bytes(CONTENT)
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served"))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_downloaded_once_then_taken_from_the_cache(server, tmp_path):
    path = download(f"{server}/file.h5", CHECKSUM, str(tmp_path / "cache"))
    assert path.read_bytes() == CONTENT and [item.name for item in path.parent.iterdir()] == ["file.h5"]
    (tmp_path / "served" / "file.h5").unlink()
    assert download(f"{server}/file.h5", CHECKSUM, str(tmp_path / "cache")) == path


def test_a_damaged_copy_in_the_cache_is_replaced(server, tmp_path):
    path = download(f"{server}/file.h5", CHECKSUM, str(tmp_path / "cache"))
    path.write_bytes(b"damaged")
    assert download(f"{server}/file.h5", CHECKSUM, str(tmp_path / "cache")).read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(
        UserError, match=f"(?s)expected sha256 {'0' * 64}.*got .*{CHECKSUM}, 40 bytes.*take={CHECKSUM}"
    ):
        download(f"{server}/file.h5", "0" * 64, str(tmp_path / "cache"), "take")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(UserError, match="cannot download .*gone.h5.*data.path=FILE"):
        download(f"{server}/gone.h5", CHECKSUM, str(tmp_path / "cache"))
    with pytest.raises(UserError, match="^here.url: cannot download.*here.path=FILE.*here.cache="):
        download("http://127.0.0.1:9/file.h5", CHECKSUM, str(tmp_path / "cache"), key="here")
