"""A fast S3 server on loopback that answers only ListObjectsV2. (moto sorts all keys for every page.)

    python benchmarks/listing_server.py LAYOUT KEYS LATENCY_MS    prints its port

Each answer is delayed by LATENCY_MS, like that of a distant store.
"""

import sys
import time
from bisect import bisect_left, bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

BUCKET, PAGE = "bucket", 1000
LAYOUTS = {
    "flat": lambda n, of: f"images/{n:09d}.jpg",
    "prefixes": lambda n, of: f"images/{n * 1000 // of:03d}/{n:09d}.jpg",
    "shards": lambda n, of: f"shards/{n:06d}.tar",
}
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{:032x}&quot;</ETag>"
    "<Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
LAST = "\U0010ffff"
MIXED = 0x9E3779B97F4A7C15F39CC0605CEDC835  # turns positions into ETags that compress as badly as hashes


class Handler(BaseHTTPRequestHandler):
    """Answers listings of `keys` and counts the requests."""

    protocol_version = "HTTP/1.1"
    keys: list[str]
    latency: float
    requests = 0

    def do_GET(self) -> None:
        """Answer with a page of keys, or for /requests with the number of requests since the last such answer."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if path == "/requests":
            answer, Handler.requests = str(Handler.requests), 0
        else:
            Handler.requests += 1
            time.sleep(self.latency)
            answer = page(self.keys, {name: values[0] for name, values in query.items()})
        content = answer.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def page(keys: list[str], query: dict[str, str]) -> str:
    """One answer to ListObjectsV2. The continuation token is the last key or prefix of the page before."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    position = max(bisect_left(keys, prefix), bisect_right(keys, after))
    entries, most, last = [], int(query.get("max-keys", PAGE)), ""
    while len(entries) < most and position < len(keys) and keys[position].startswith(prefix):
        key = keys[position]
        slash = key.find(delimiter, len(prefix)) if delimiter else -1
        if slash < 0:
            entries.append(ENTRY.format(quote(key), position * MIXED % 2**128, 100_000 + position % 1000))
            last, position = key, position + 1
        else:
            last = key[: slash + 1] + LAST
            entries.append(f"<CommonPrefixes><Prefix>{quote(key[: slash + 1])}</Prefix></CommonPrefixes>")
            position = bisect_right(keys, last)
    more = position < len(keys) and keys[position].startswith(prefix)
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{quote(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries)}"
        "</ListBucketResult>"
    )


def main() -> None:
    """Serve until the process is killed."""
    layout, count, latency = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    Handler.keys = sorted(LAYOUTS[layout](n, count) for n in range(count))
    Handler.latency = latency / 1000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
