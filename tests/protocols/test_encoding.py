import gzip
import os
import random
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pointsman.protocols import SUPPORTED, TooLarge, Undecodable, decode_body, stream_decoder


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def brotli_compress(data: bytes) -> bytes:
    return bytes(brotli.compress(data))


def brotli_then_gzip(data: bytes) -> bytes:
    return gzip.compress(brotli_compress(data))


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli_compress),
    ("zstd", zstd),
    (" BR , gzip, identity", brotli_then_gzip),
    ("identity", bytes),
    ("", bytes),
]
each_coding = pytest.mark.parametrize(("name", "encode"), ENCODERS)
each_compression = pytest.mark.parametrize(("name", "encode"), ENCODERS[:-2])


@each_coding
@given(data=st.binary(max_size=300), repeat=st.integers(1, 500), step=st.integers(1, 400))
def test_decoding_undoes_encoding_in_any_cuts(
    name: str, encode: Callable[[bytes], bytes], data: bytes, repeat: int, step: int
) -> None:
    data *= repeat
    body = encode(data)
    assert decode_body(body, name, limit=len(data) + 1000) == data
    decoder = stream_decoder(name)
    if decoder is not None:
        pieces = [decoder.feed(body[i : i + step]) for i in range(0, len(body), step)]
        assert b"".join(pieces) + decoder.close() == data


@each_compression
def test_a_bomb_is_too_large(name: str, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(24 << 20))
    with pytest.raises(TooLarge):
        decode_body(bomb, name, limit=1 << 20)
    decoder = stream_decoder(name)
    assert decoder is not None
    with pytest.raises(TooLarge):
        decoder.feed(bomb)


@each_coding
def test_the_limit_is_exact(name: str, encode: Callable[[bytes], bytes]) -> None:
    data = b"a" * 100_000
    assert decode_body(encode(data), name, limit=100_000) == data
    with pytest.raises(TooLarge):
        decode_body(encode(data), name, limit=99_999)


@each_compression
def test_a_body_cut_short_is_undecodable_and_a_stream_gives_what_there_is(
    name: str, encode: Callable[[bytes], bytes]
) -> None:
    data = random.Random(1).randbytes(300_000)
    body = encode(data)[:-1]
    with pytest.raises(Undecodable):
        decode_body(body, name, limit=1 << 20)
    decoder = stream_decoder(name)
    assert decoder is not None
    assert data.startswith(decoder.feed(body))
    with pytest.raises(Undecodable):
        decoder.close()


@each_compression
def test_corrupt_bytes_are_undecodable(name: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Undecodable):
        decode_body(b"\xff<html>" * 10, name, limit=1000)


@each_coding
def test_an_empty_body_is_empty_in_every_coding(
    name: str, encode: Callable[[bytes], bytes]
) -> None:
    assert decode_body(b"", name, limit=0) == b""


@pytest.mark.parametrize("name", ["compress", "gzip, lzma", "utf-8"])
def test_an_unknown_coding_is_undecodable(name: str) -> None:
    with pytest.raises(Undecodable, match="unknown content coding"):
        decode_body(b"", name, limit=10)
    with pytest.raises(Undecodable):
        stream_decoder(name)


def test_nothing_to_undo_is_no_decoder() -> None:
    assert stream_decoder("identity") is None
    assert stream_decoder("") is None
    assert {"gzip", "x-gzip", "deflate", "br", "zstd", "identity"} == SUPPORTED


def test_gzip_may_have_several_members_and_padding() -> None:
    body = gzip.compress(b"a") + gzip.compress(b"b") + bytes(5000)
    assert decode_body(body, "gzip", limit=10) == b"ab"
    with pytest.raises(Undecodable):
        decode_body(body + b"garbage", "gzip", limit=10)
    with pytest.raises(Undecodable):
        decode_body(bytes(10), "gzip", limit=10)


def test_zstd_may_have_several_frames() -> None:
    assert decode_body(zstd(b"a") + zstd(b"b"), "zstd", limit=10) == b"ab"


def flushed(name: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """Return what encodes and flushes one event, and what ends the stream."""
    if name == "br":
        br = brotli.Compressor()
        return lambda event: br.process(event) + br.flush(), br.finish
    if name == "zstd":
        frame = zstandard.ZstdCompressor().compressobj()
        block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return lambda event: frame.compress(event) + frame.flush(block), frame.flush
    wbits = {"gzip": 31, "deflate": 15}[name]
    z = zlib.compressobj(wbits=wbits)
    return lambda event: z.compress(event) + z.flush(zlib.Z_SYNC_FLUSH), z.flush


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_a_flushed_event_comes_out_at_once(name: str) -> None:
    encode, finish = flushed(name)
    decoder = stream_decoder(name)
    assert decoder is not None
    for event in (b"data: 1\n\n", b"data: " + os.urandom(9000) + b"\n\n", b"data: 3\n\n"):
        assert decoder.feed(encode(event)) == event
    assert decoder.feed(finish()) + decoder.close() == b""
