"""A million random and mutated message bodies → the decoder: no exception, and no body that takes long."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from bench import ntqq
from bench.figures import Figure, show
from bot import config
from training.importers import ntqq_body, ntqq_wire

BODIES = 1_000_000
_SLOW_S = 1.0


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Print how many bodies were decoded and how many raised."""
    started, raised, slowest = time.perf_counter(), 0, 0.0
    for body in bodies(BODIES, seed=7):
        one = time.perf_counter()
        try:
            decode(body)
        except Exception:  # noqa: BLE001 - what is counted here
            raised += 1
        slowest = max(slowest, time.perf_counter() - one)
    took = time.perf_counter() - started
    figures = [
        Figure("bodies that raise", raised, "bodies", goal=0, met=raised == 0, n=BODIES),
        Figure("slowest body", slowest, "s", goal=_SLOW_S, met=slowest <= _SLOW_S, n=BODIES),
        Figure("bodies per second", BODIES / took, "1/s", n=BODIES),
    ]
    show("fuzz-import", figures, as_json=as_json)


def decode(body: bytes) -> None:
    """Everything the importer does with a body and a cache column."""
    for parts in (ntqq_wire.elements(body), *ntqq_wire.cached(body)):
        told = ntqq_body.told(parts, lambda _: None)
        told.text.encode()
        if told.quote is not None:
            ntqq_body.quote(told.quote, body)


def bodies(n: int, seed: int) -> Iterator[bytes]:
    """Random bytes, and good bodies with bits turned, pieces cut, doubled, nested and put elsewhere."""
    draw = random.Random(seed)
    good = [ntqq.body(e) for e in ntqq.OTHERS.values()]
    good += [ntqq.body(*draw.sample(list(ntqq.OTHERS.values()), 4)) for _ in range(50)]
    good += [
        ntqq.body(ntqq.reply(7, 20001, ntqq.START_S, ntqq.text("原话")), ntqq.at("@某人 ", 20001, "u_1")),
        ntqq.body(ntqq.text("缓存"), field=40900),
    ]  # fmt: skip
    for _ in range(n):
        body = bytearray(draw.choice(good))
        match draw.randrange(7):
            case 0:
                body = bytearray(draw.randbytes(draw.randrange(64)))
            case 1:
                del body[draw.randrange(len(body)) :]
            case 2:
                for _ in range(draw.randint(1, 8)):
                    body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
            case 3:
                at = draw.randrange(len(body))
                body[at:at] = draw.randbytes(draw.randint(1, 6))
            case 4:
                body += draw.choice(good)
            case 5:
                at = draw.randrange(len(body))
                body[at : at + draw.randint(1, 9)] = b""
            case _:
                for _ in range(draw.randint(1, 12)):
                    body = bytearray(ntqq.encoded([(draw.choice((40800, 40900, 47423)), bytes(body))]))
        yield bytes(body)
